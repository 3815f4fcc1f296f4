"""`python -m medley_demo`: bring the cluster up, install Medley, tell the story, leave the cluster up."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

from medley_cluster.progress import Steps
from medley_demo.chapters import CHAPTERS, Story
from medley_demo.stage import Stage
from medley_demo.telling import Telling


def main(arguments: Sequence[str] | None = None) -> int:
    """Tell the story; 0 where every promise was kept, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="medley_demo", description=__doc__)
    parser.add_argument("--name", default="demo", help="the cluster's name (default: %(default)s)")
    parser.add_argument("--nodes", choices=("real", "none"), default="real", help="with or without a real node")
    options = parser.parse_args(arguments)
    console = Console(highlight=False)
    telling = Telling(console)
    try:
        with telling.chapter("a cluster, and Medley in it") as chapter, Steps(console) as steps:
            stage = Stage.set_up(options.name, steps, real_node=options.nodes == "real")
            chapter.outcome = stage.summary
        story = Story(stage, telling)
        for title, tell, needs_real_node in CHAPTERS:
            if needs_real_node and not stage.has_real_node:
                telling.skip(title, stage.why_no_real_node)
                continue
            with telling.chapter(title) as chapter:
                tell(story, chapter)
    except Exception as error:  # noqa: BLE001 - the table is shown whatever ended the story, and the exit status says it
        console.print(f"\n[red]{type(error).__name__}[/red]: {escape(str(error))}")
        console.print(telling.closing_table())
        return 1
    console.print()
    console.print(telling.closing_table())
    _what_next(console, stage)
    return 0


def _what_next(console: Console, stage: Stage) -> None:
    console.print("\nThe cluster stays up. Try next:")
    console.print(f"  [bold]export KUBECONFIG={stage.cluster.kubeconfig} PATH={stage.path_additions}:$PATH[/bold]")
    for command, what in (
        ("kubectl get llm,gpupools", "the services and the pools"),
        ("kubectl medley explain chat", "why this mix, what binds, what else would cost"),
        ("kubectl describe llm chat", "the whole status, with events"),
        ("kubectl edit llm chat", "change the rate, an objective or the price cap"),
        ("medley plan -f manifests/samples/", "the same plan without a cluster"),
        ("make demo-down", "remove every trace of the cluster"),
    ):
        console.print(f"  [bold]{command:<36}[/bold] {what}")


if __name__ == "__main__":
    sys.exit(main())
