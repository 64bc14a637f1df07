"""Train our model or timm's own by the same recipe on the same data, to lay the curves side by side.

    python benchmarks/classifier_beside_timm.py objects --model ours --output runs/ours epochs=300
    python benchmarks/classifier_beside_timm.py objects --model timm --output runs/timm epochs=300

Then `python benchmarks/classifier_beside_timm.py objects --compare runs/ours runs/timm` prints both, by origin of the pictures.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

import torch
from peers import build


def compare(folders: list[str]) -> None:
    print("| run | top-1, % | top-5, % | per origin | minutes | device |")
    print("| --- | --- | --- | --- | --- | --- |")
    for folder in folders:
        result = json.loads((Path(folder) / "result.json").read_text())
        groups = ", ".join(f"{name} {value:.1f}" for name, value in (result["per_group"] or {}).items())
        top1, top5 = (result["metrics"][name] for name in ("top1", "top5"))
        minutes = result["seconds"] / 60
        print(f"| {folder} | {top1:.2f} | {top5:.2f} | {groups} | {minutes:.1f} | {result['device']} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("settings", nargs="*", help="settings of the recipe, key=value")
    parser.add_argument("--model", choices=("ours", "timm"), default="ours")
    parser.add_argument("--recipe", default="small-scratch")
    parser.add_argument("--output")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--compare", nargs="+")
    arguments = parser.parse_intermixed_args()
    if arguments.compare:
        return compare(arguments.compare)
    logging.basicConfig(level=logging.INFO)
    from mobilevitv2.data.classification import open_classification_data
    from mobilevitv2.train.classify import train_classifier
    from mobilevitv2.train.recipe import load_recipe

    overrides = dict(setting.split("=", 1) for setting in arguments.settings)
    recipe = load_recipe(arguments.recipe, overrides)
    torch.manual_seed(recipe.seed)
    classes = open_classification_data(arguments.data, validation_fraction=0).classes
    model = "scratch" if arguments.model == "ours" else build("timm", recipe.width, len(classes))
    result = train_classifier(
        arguments.data,
        model=model,
        recipe=recipe,
        output=arguments.output or f"runs/{arguments.model}",
        resume=arguments.resume,
        check=False,
    )
    print(result.metrics, f"{result.seconds:.0f} s")
    return None


if __name__ == "__main__":
    main()
