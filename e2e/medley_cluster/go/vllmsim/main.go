// Command vllm-standin is llm-d-inference-sim under vLLM's own command line.
//
// The simulator refuses the vLLM flags that it does not know.
// An operator that is tested against it must pass what it would pass to vLLM, so this wrapper drops unknown flags, with a line
// in the log for each, takes the model as a positional argument too (as `vllm serve MODEL` does), and never loads a tokenizer.
package main

import (
	"context"
	"os"
	"strings"

	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"

	"github.com/llm-d/llm-d-inference-sim/cmd/signals"
	"github.com/llm-d/llm-d-inference-sim/pkg/common"
	"github.com/llm-d/llm-d-inference-sim/pkg/communication"
	sim "github.com/llm-d/llm-d-inference-sim/pkg/llm-d-inference-sim"
)

func main() {
	logger := klog.Background()
	ctx := signals.SetupSignalHandler(klog.NewContext(context.Background(), logger))

	arguments, dropped := translate(append(strings.Fields(os.Getenv("VLLM_STANDIN_ARGS")), os.Args[1:]...))
	for _, flag := range dropped {
		logger.Info("vLLM flag has no counterpart in the stand-in, ignored", "flag", flag)
	}
	os.Args = append(os.Args[:1], arguments...)

	if err := serve(ctx, logger); err != nil {
		logger.Error(err, "vllm-standin failed")
		klog.Flush()
		os.Exit(1)
	}
}

func serve(ctx context.Context, logger klog.Logger) error {
	config, err := common.ParseCommandParamsAndLoadConfig()
	if err != nil {
		return err
	}
	simulators, err := sim.Start(ctx, config, logger)
	if err != nil {
		return err
	}
	group := new(errgroup.Group)
	for _, simulator := range simulators {
		group.Go(func() error { return communication.Start(ctx, logger, simulator) })
	}
	return group.Wait()
}
