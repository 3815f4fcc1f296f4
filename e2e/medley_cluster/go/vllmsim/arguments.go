package main

import "strings"

// valued are the simulator's flags that take a value; listed are those that take several, each an argument of its own.
var (
	valued = set(`port max-request-body-size-mb model max-num-seqs max-waiting-queue-length max-loras max-cpu-loras max-model-len
		mode inter-token-latency time-to-first-token prefill-overhead prefill-time-per-token prefill-time-std-dev
		kv-cache-transfer-time-per-token kv-cache-transfer-time-std-dev kv-cache-transfer-latency inter-token-latency-std-dev
		time-to-first-token-std-dev kv-cache-transfer-latency-std-dev seed time-factor-under-load kv-cache-size
		global-cache-hit-threshold block-size hash-seed zmq-endpoint event-batch-size data-parallel-size data-parallel-rank
		dataset-path dataset-url dataset-table-name startup-duration failure-injection-rate ssl-certfile ssl-keyfile
		latency-calculator default-embedding-dimensions fake-metrics-refresh-interval mm-processor-kwargs ec-transfer-config config v`)
	listed   = set(`served-model-name lora-modules fake-metrics failure-types`)
	switches = set(`enable-kvcache dataset-in-memory enable-request-id-headers log-http self-signed-certs force-dummy-tokenizer
		enable-sleep-mode`)
)

// translate maps vLLM's arguments to the simulator's, and names the flags that it left out.
func translate(arguments []string) (kept []string, dropped []string) {
	hasModel := false
	for i := 0; i < len(arguments); i++ {
		argument := arguments[i]
		if !strings.HasPrefix(argument, "-") {
			if argument != "serve" && !hasModel {
				kept, hasModel = append(kept, "--model", argument), true
			}
			continue
		}
		name, value, inline := strings.Cut(strings.TrimLeft(argument, "-"), "=")
		name = strings.ReplaceAll(name, "_", "-")
		var values []string
		if inline {
			values = []string{value}
		} else if !switches[name] {
			for i+1 < len(arguments) && !isFlag(arguments[i+1]) && (listed[name] || len(values) == 0) {
				i++
				values = append(values, arguments[i])
			}
		}
		switch {
		case name == "force-dummy-tokenizer":
		case switches[name] && inline:
			kept = append(kept, "--"+name+"="+value)
		case switches[name]:
			kept = append(kept, "--"+name)
		case (valued[name] || listed[name]) && len(values) > 0:
			hasModel = hasModel || name == "model"
			kept = append(append(kept, "--"+name), values...)
		default:
			dropped = append(dropped, argument)
		}
	}
	return append(kept, "--force-dummy-tokenizer"), dropped
}

// isFlag tells a flag from a negative number.
func isFlag(argument string) bool {
	return strings.HasPrefix(argument, "-") && !(len(argument) > 1 && argument[1] >= '0' && argument[1] <= '9')
}

func set(names string) map[string]bool {
	members := map[string]bool{}
	for _, name := range strings.Fields(names) {
		members[name] = true
	}
	return members
}
