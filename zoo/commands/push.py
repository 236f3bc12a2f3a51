"""python -m zoo push: a run's export to the Hugging Face Hub."""

from typing import Any

import zoo


def add(commands: Any) -> None:
    command = commands.add_parser("push", help="upload a run's export to the Hub, with a model card")
    command.add_argument("folder", metavar="RUN", help="a run folder, an export, or a folder of zoo.save_pretrained")
    command.add_argument("repository", metavar="ORG/NAME")
    command.add_argument("--private", action="store_true", help="make a private repository, if it is new")
    command.set_defaults(run=lambda args: print(zoo.push_to_hub(args.folder, args.repository, args.private)))
