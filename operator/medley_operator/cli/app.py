"""The `medley` command: one function per subcommand, each of them parse, call, print, exit."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from medley_operator.api.llmservice import LLMService
from medley_operator.api.manifest import InvalidManifestError, parse
from medley_operator.cli import discover as discovery
from medley_operator.cli.bucketing import DEFAULT_MODEL, error_data, error_tables, errors_of
from medley_operator.cli.cluster import Cluster, ClusterError, Connection
from medley_operator.cli.columns import rows_table
from medley_operator.cli.estimating import EstimatorChoice, EstimatorMissingError, capacity_function
from medley_operator.cli.explain import (
    TargetError,
    explanation,
    explanation_tables,
    fetch_service,
    is_planned,
    service_name,
)
from medley_operator.cli.helping import helping_processes
from medley_operator.cli.inputs import InputError, read_inputs
from medley_operator.cli.live import live_fleet
from medley_operator.cli.model import catalogue_data, catalogue_table, find_model, model_tables
from medley_operator.cli.output import (
    EXIT_BAD_INPUT,
    EXIT_INFEASIBLE,
    EXIT_OK,
    OutputFormat,
    print_data,
    print_errors,
    print_mistakes,
    print_tables,
)
from medley_operator.cli.planning import Question, answered, plan_inputs
from medley_operator.cli.report.page import ReportError, plan_page, require_report, service_page, write_page
from medley_operator.cli.report.simulation_page import simulation_page, write_simulation_page
from medley_operator.cli.sensitivity import SENSITIVITY_TIME_S, told_within
from medley_operator.cli.simulation import Replay, simulate_planned, told_progress
from medley_operator.cli.simulation_manifest import simulation_manifest
from medley_operator.cli.simulation_tables import simulation_tables
from medley_operator.cli.tables import fleet_tables
from medley_operator.cli.workload import DEFAULT_PRIOR, find_workload
from medley_operator.cli.workload_tables import workload_tables
from medley_operator.estimators.aiconfigurator import AIConfiguratorError
from medley_operator.version import VERSION
from medley_planner.explaining.sensitivity import TURNS_ONLY, Effort
from medley_planner.fleet import Formulation, PlanOptions
from medley_planner.plan import UnsoundPlanError
from medley_planner.simulator.routing import Balancing, Knowledge
from medley_planner.simulator.run import StepBudget
from medley_planner.workload.buckets import DEFAULT_BINS

app = typer.Typer(
    name="medley",
    help="Serve large language models on the cheapest mix of GPUs that meets their latency objectives.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Output = Annotated[OutputFormat, typer.Option("--output", "-o", help="How the answer is printed.")]
Kubeconfig = Annotated[str | None, typer.Option("--kubeconfig", help="Path of a kubeconfig.", show_default=False)]
Context = Annotated[str | None, typer.Option("--context", help="Context of the kubeconfig.", show_default=False)]


@app.command()
def plan(
    files: Annotated[
        list[str] | None,
        typer.Option(
            "--filename",
            "-f",
            help="A file, a folder (recursively), or - for standard input. Repeatable.",
            show_default=False,
        ),
    ] = None,
    *,
    cluster: Annotated[
        bool,
        typer.Option("--cluster", help="Plan the cluster's objects and stock as they are, changed by those of -f."),
    ] = False,
    output: Output = OutputFormat.TABLE,
    formulation: Annotated[
        Formulation, typer.Option(help="medley: jointly, under stock and caps. melange: as in arXiv 2404.14527.")
    ] = Formulation.MEDLEY,
    fleet_cap: Annotated[
        float | None,
        typer.Option(min=0, max=1e9, help="All services together cost no more than this per hour.", show_default=False),
    ] = None,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Also tell at which prices and rates the mix changes.")
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(help="Also write the plan, why, and plots to this HTML file.", show_default=False),
    ] = None,
    estimator: Annotated[
        EstimatorChoice, typer.Option(help="Where capacities come from that a ModelProfile has not measured.")
    ] = EstimatorChoice.AUTO,
    disaggregated: Annotated[
        bool,
        typer.Option("--disaggregated", help="Also weigh replicas that only prefill or only decode: advice alone."),
    ] = False,
    time_limit: Annotated[
        float, typer.Option(min=0.1, max=3600, help="Bound on the solver's time, in seconds.")
    ] = 30.0,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Plan LLMServices from files, without a cluster; or those of a cluster, which is only read.

    The files hold LLMServices, the GPUPools and ModelProfiles that they use, and ConfigMaps with traces.
    Ends with status 0 where all services are served, 1 where one is not, 2 where the input is wrong.
    """
    if not files and not cluster:
        print_errors(["nothing to plan: give files with -f, or --cluster"])
        raise typer.Exit(EXIT_BAD_INPUT)
    effort = Effort() if report is not None else TURNS_ONLY if sensitivity else None
    options = PlanOptions(formulation=formulation, time_limit_s=time_limit)
    try:
        if report is not None:
            require_report(report)
        with (
            capacity_function(estimator) as capacity_of,
            told_within(SENSITIVITY_TIME_S) as progress,
            helping_processes() as helpers,
        ):
            question = Question(options, fleet_cap, effort, capacity_of, disaggregated, helpers)
            if cluster:
                changes, now_s = read_inputs(files or ()), time.time()
                live = live_fleet(Cluster(Connection(kubeconfig, context)), changes, now_s, fleet_cap)
                planned = answered(live, question, progress=progress)
            else:
                planned = plan_inputs(read_inputs(files or ()), question, progress=progress)
        if report is not None:
            write_page(report, plan_page(planned))
    except InputError as error:
        print_mistakes(error.mistakes)
        raise typer.Exit(EXIT_BAD_INPUT) from None
    except (ReportError, EstimatorMissingError, AIConfiguratorError, ClusterError) as error:
        print_errors([str(error)])
        raise typer.Exit(EXIT_BAD_INPUT) from None
    except UnsoundPlanError as error:
        print_errors([f"the planner refused its own plan, which is a bug; please report it with the input: {error}"])
        raise typer.Exit(EXIT_INFEASIBLE) from None
    if output is OutputFormat.TABLE:
        print_tables(fleet_tables(planned))
    else:
        print_data(planned.to_manifest(), output)
    raise typer.Exit(EXIT_OK if planned.feasible else EXIT_INFEASIBLE)


@app.command()
def simulate(
    files: Annotated[
        list[str],
        typer.Option("--filename", "-f", help="A file, a folder (recursively), or - for standard input. Repeatable."),
    ],
    *,
    trace: Annotated[
        Path | None, typer.Option(help="Replay this trace's requests, at the rate that is planned for.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="Draw request sizes from this preset.")] = None,
    service: Annotated[
        str | None, typer.Option(help="The service that --trace, --preset and --rate are for, where there are several.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(min=1e-6, max=1e6, help="Requests per second. Default: what is planned for.")
    ] = None,
    duration: Annotated[
        float | None,
        typer.Option(min=1, max=1e7, help="Seconds of arrivals. Default: once through the trace, else 1800."),
    ] = None,
    cv: Annotated[
        float | None,
        typer.Option(min=0, max=100, help="Coefficient of variation between drawn arrivals. Default: as planned."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of everything that is drawn.")] = 0,
    router: Annotated[
        Knowledge, typer.Option(help="What the router takes a request's output for; an oracle knows it.")
    ] = Knowledge.MEAN,
    balancing: Annotated[
        Balancing, typer.Option(help="Which replica of a variant gets a request.")
    ] = Balancing.LEAST_LOAD,
    overflow: Annotated[
        bool, typer.Option(help="Where a variant is at its capacity, requests go to another one that can serve them.")
    ] = True,
    steps: Annotated[
        StepBudget, typer.Option(help="Tokens of a step: the engine's default, or what medley plan advises.")
    ] = StepBudget.DEFAULT,
    fit: Annotated[
        bool, typer.Option("--fit", help="Also find the rate that must be planned for to keep the objectives.")
    ] = False,
    output: Output = OutputFormat.TABLE,
    html: Annotated[Path | None, typer.Option(help="Also write the result with plots to this HTML file.")] = None,
) -> None:
    """Plan LLMServices from files, and replay requests through the plan in simulated time, without a cluster.

    Ends with status 0 where every objective is kept, 1 where one is not (or a service cannot be planned), 2 where the
    input is wrong.
    """
    replay = Replay(
        trace=None if trace is None else str(trace),
        preset=preset,
        service=service,
        rate_rps=rate,
        duration_s=duration,
        interarrival_cv=cv,
        seed=seed,
        knowledge=router,
        balancing=balancing,
        overflow=overflow,
        step_budget=steps,
        fits=fit,
    )
    try:
        if html is not None:
            require_report(html)
        planned = plan_inputs(read_inputs(files), Question(PlanOptions(explain=False)))
        with told_progress() as told:
            simulated = simulate_planned(planned, replay, told=told)
        if html is not None:
            write_simulation_page(html, simulation_page(simulated))
    except InputError as error:
        print_mistakes(error.mistakes)
        raise typer.Exit(EXIT_BAD_INPUT) from None
    except ReportError as error:
        print_errors([str(error)])
        raise typer.Exit(EXIT_BAD_INPUT) from None
    except UnsoundPlanError as error:
        print_errors([f"the planner refused its own plan, which is a bug; please report it with the input: {error}"])
        raise typer.Exit(EXIT_INFEASIBLE) from None
    if output is OutputFormat.TABLE:
        print_tables(simulation_tables(simulated))
    else:
        print_data(simulation_manifest(simulated), output)
    raise typer.Exit(EXIT_OK if simulated.attained else EXIT_INFEASIBLE)


@app.command()
def explain(
    target: Annotated[str, typer.Argument(metavar="llm/NAME", help="The LLMService: llm/NAME or NAME.")],
    *,
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", help="Default: the context's namespace.", show_default=False)
    ] = None,
    output: Output = OutputFormat.TABLE,
    report: Annotated[
        Path | None, typer.Option(help="Also write the plan and why to this HTML file.", show_default=False)
    ] = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Explain what a running LLMService is served with, why, and what is going on.

    Ends with status 0 where it is planned, 1 where it is not, 2 where it cannot be read.
    """
    try:
        name = service_name(target)
        cluster = Cluster(Connection(kubeconfig, context))
        manifest = fetch_service(cluster, namespace or cluster.namespace, name)
        service = parse(LLMService, manifest)
        if report is not None:
            require_report(report)
            write_page(report, service_page(service))
    except (TargetError, ClusterError, ReportError) as error:
        print_errors([str(error)])
        raise typer.Exit(EXIT_BAD_INPUT) from None
    except InvalidManifestError as error:
        print_errors(f"the cluster's LLMService is of another release: {wrong}" for wrong in error.errors)
        raise typer.Exit(EXIT_BAD_INPUT) from None
    if output is OutputFormat.TABLE:
        print_tables(explanation_tables(service))
    else:
        print_data(explanation(service), output)
    raise typer.Exit(EXIT_OK if is_planned(service) else EXIT_INFEASIBLE)


@app.command()
def workload(
    trace: Annotated[
        str | None,
        typer.Argument(help="A trace of requests: CSV or JSON lines, packed with gzip or not; - for standard input."),
    ] = None,
    *,
    marginals: Annotated[
        str | None,
        typer.Option(
            help="Measured histograms of input and of output sizes, to fit to: /metrics of an engine, or YAML."
        ),
    ] = None,
    prior: Annotated[
        str, typer.Option(help="Preset that --marginals are fitted with, where there is no trace.")
    ] = DEFAULT_PRIOR,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN=VALUE", help="Count only these requests (labels, with --marginals). Repeatable."),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            min=1e-6, max=1e6, help="Requests per second to plan for. Default: the trace's own.", show_default=False
        ),
    ] = None,
    buckets: Annotated[int, typer.Option(min=1, max=16, help="Buckets of each of the two sizes.")] = DEFAULT_BINS,
    error: Annotated[
        bool, typer.Option("--error", help="Also show what bucketing does to the price of the trace's load.")
    ] = False,
    model: Annotated[str, typer.Option(help="With --error: the model, by its id in the catalogue.")] = DEFAULT_MODEL,
    tpot: Annotated[float, typer.Option(min=0.1, max=1e6, help="With --error: ms per output token.")] = 80.0,
    ttft: Annotated[float, typer.Option(min=1, max=1e7, help="With --error: ms to the first token.")] = 10_000.0,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Turn a trace, or measured margins, into a histogram of request sizes.

    -o yaml prints the workload of an LLMService's spec.
    """
    try:
        made = find_workload(trace, marginals=marginals, prior=prior, where=where or (), rate_rps=rate, bins=buckets)
        errors = errors_of(made, model=model, tpot_ms=tpot, ttft_ms=ttft) if error else None
    except InputError as wrong:
        print_mistakes(wrong.mistakes)
        raise typer.Exit(EXIT_BAD_INPUT) from None
    match output:
        case OutputFormat.TABLE:
            print_tables(workload_tables(made))
            if errors is not None:
                print_tables(error_tables(errors, model))
        case OutputFormat.YAML:
            print_data({"workload": made.to_spec()}, output)
        case OutputFormat.JSON:
            told = {} if errors is None else {"bucketing": error_data(errors)}
            print_data({"workload": made.to_spec(), "statistics": made.statistics(), **told}, output)


@app.command()
def model(
    model: Annotated[
        str | None,
        typer.Argument(help="An id in the catalogue, a config.json, a folder that holds one, or - for standard input."),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="The model's id. Default: the catalogue's, or the folder's name.")
    ] = None,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Show what is known of a model, from the catalogue or its config.json; -o yaml prints a ModelProfile.

    Without an argument, list the models of the catalogue.
    """
    try:
        found = None if model is None else find_model(model, name=name)
    except InputError as error:
        print_mistakes(error.mistakes)
        raise typer.Exit(EXIT_BAD_INPUT) from None
    match output:
        case OutputFormat.TABLE:
            print_tables(catalogue_table() if found is None else model_tables(found))
        case OutputFormat.YAML:
            print_data(catalogue_data() if found is None else found.profile(), output)
        case OutputFormat.JSON:
            print_data(catalogue_data() if found is None else found.to_data(), output)


@app.command()
def discover(
    output: Annotated[
        OutputFormat, typer.Option("--output", "-o", help="How the answer is printed.")
    ] = OutputFormat.YAML,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Make GPUPools for the GPU nodes of a cluster, with list prices where they are known.

    Read the YAML, put in what you pay, and apply it. Ends with status 1 where the cluster has no labelled GPU node.
    """
    try:
        pools = discovery.discover(Cluster(Connection(kubeconfig, context)).nodes())
    except ClusterError as error:
        print_errors([str(error)])
        raise typer.Exit(EXIT_BAD_INPUT) from None
    if not pools:
        labels = " or ".join(label for names in discovery.PRODUCT_LABELS.values() for label in names)
        print_errors([f"no node has GPUs and a label {labels}: is GPU feature discovery installed?"])
        raise typer.Exit(EXIT_INFEASIBLE)
    match output:
        case OutputFormat.TABLE:
            print_tables(rows_table(*discovery.summary(pools)))
        case OutputFormat.YAML:
            typer.echo(discovery.pools_yaml(pools), nl=False)
        case OutputFormat.JSON:
            items = [discovery.pool_manifest(pool) for pool in pools]
            print_data({"apiVersion": "v1", "kind": "List", "items": items}, output)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(VERSION)
