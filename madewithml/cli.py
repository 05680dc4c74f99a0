"""The command line: `madewithml COMMAND --help`. Results go to stdout, everything else to stderr.

Exit status: 0 done, 1 failed, 2 wrong usage, 3 refused.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import rich.console
import typer

from madewithml import cli_keys, cli_options, config, errors

app = typer.Typer(
    name="madewithml",
    help='Turn a trained text classifier into a service that says "other" instead of guessing.',
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    # `--run_id` and `--run-id` are the same: scripts in the wild use both.
    context_settings={"token_normalize_func": lambda name: name.replace("_", "-")},
)

app.add_typer(cli_keys.app, name="keys")


@app.command()
def train(
    dataset_loc: cli_options.Dataset,
    experiment_name: cli_options.Experiment,
    text_fields: cli_options.TextFields = "title,description",
    label_field: cli_options.LabelField = "tag",
    encoder: Annotated[str | None, typer.Option(help="Hugging Face id or folder of the encoder.")] = None,
    num_epochs: Annotated[int, typer.Option(min=1, help="Most passes over the training rows, in each fit.")] = 3,
    num_fits: Annotated[int, typer.Option(min=1, help="Fits whose weights are averaged; 1 is the fastest.")] = 2,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows a step, over all workers.")] = 16,
    num_workers: Annotated[int, typer.Option(min=1, help="Ray Train workers.")] = 1,
    class_weights: Annotated[bool, typer.Option(help="Let rare classes count more in the loss.")] = False,
    max_length: Annotated[int, typer.Option(min=8, help="Tokens a text is cut to.")] = 256,
    seed: Annotated[int, typer.Option(help="Of the split and of fitting.")] = 0,
    validation_size: Annotated[float, typer.Option(help="Share of the rows that choose the epoch.")] = 0.08,
    calibration_size: Annotated[float, typer.Option(help="Share of the rows to certify on; 0: none.")] = 0.14,
    test_size: Annotated[float, typer.Option(help="Share of the rows to report on; 0: none.")] = 0.20,
    results_fp: cli_options.Results = None,
    home: cli_options.Home = None,
) -> None:
    """Train a classifier on a labelled file; the last line of stdout is the run id."""
    from madewithml import data, fitting
    from madewithml import train as train_

    settings = config.load(home=home, encoder=encoder)
    cli_options.check_writable(results_fp)
    options = train_.TrainOptions(
        dataset_loc=dataset_loc,
        experiment_name=experiment_name,
        text_fields=cli_options.names(text_fields),
        label_field=label_field,
        encoder=settings.encoder,
        max_length=max_length,
        num_workers=num_workers,
        shares=data.shares(validation=validation_size, calibration=calibration_size, test=test_size),
        parameters=fitting.Hyperparameters(
            num_epochs=num_epochs, num_fits=num_fits, batch_size=batch_size, class_weights=class_weights, seed=seed
        ),
    )
    result = train_.train(options, settings)
    document = {"run_id": result.run_id, "metrics": result.metrics, "checkpoint": str(result.checkpoint)}
    cli_options.write_results(document, results_fp)
    print(result.run_id)


@app.command("import")
def import_(
    source: Annotated[Path, typer.Option("--from", help="Transformers sequence-classification folder.")],
    experiment_name: cli_options.Experiment,
    text_fields: cli_options.TextFields = "title,description",
    labels: Annotated[str | None, typer.Option(help="Class names in index order, comma-separated.")] = None,
    dataset_loc: Annotated[str | None, typer.Option(help="Labelled rows the model was not fitted on.")] = None,
    label_field: cli_options.LabelField = "tag",
    home: cli_options.Home = None,
) -> None:
    """Make a run of a classifier that was trained elsewhere; the last line of stdout is the run id."""
    from madewithml import importing

    options = importing.ImportOptions(
        source=source,
        experiment_name=experiment_name,
        text_fields=cli_options.names(text_fields),
        labels=cli_options.names(labels) if labels else None,
        dataset_loc=dataset_loc,
        label_field=label_field,
    )
    print(importing.import_folder(options, config.load(home=home)))


@app.command("best-run")
def best_run(
    experiment_name: cli_options.Experiment,
    metric: Annotated[str, typer.Option(help="Metric to compare.")] = "val_loss",
    mode: Annotated[str, typer.Option(help="ASC: the lowest is best; DESC: the highest.")] = "ASC",
    home: cli_options.Home = None,
) -> None:
    """Print the id of an experiment's best run."""
    from madewithml import runs

    order = mode.upper()
    if order not in ("ASC", "DESC"):
        raise errors.UsageError(f"--mode is {mode!r}: expected ASC or DESC")
    print(runs.connect(config.load(home=home)).best_run(experiment_name, metric=metric, mode=order))  # type: ignore[arg-type]


@app.command()
def evaluate(
    run_id: cli_options.RunId,
    dataset_loc: cli_options.Dataset,
    label_field: cli_options.LabelField = "tag",
    slices: Annotated[
        list[str] | None, typer.Option("--slice", help="Extra slice, NAME=REGEX over the text; may be repeated.")
    ] = None,
    results_fp: cli_options.Results = None,
    home: cli_options.Home = None,
) -> None:
    """Evaluate a run on a labelled file: overall, per class, per slice, calibration."""
    from madewithml import evaluate as evaluate_
    from madewithml import tables

    settings = config.load(home=home)
    cli_options.check_writable(results_fp)
    rules = {**settings.slices, **cli_options.pairs(slices, "--slice")}
    settings = settings.model_copy(update={"slices": rules})
    document = evaluate_.evaluate_run(run_id, dataset_loc, settings, label_field=label_field)
    cli_options.write_results(document, results_fp)
    tables.show_evaluation(document, _console())


@app.command()
def predict(
    run_id: cli_options.RunId,
    title: Annotated[str | None, typer.Option(help="Text of the field `title`.")] = None,
    description: Annotated[str | None, typer.Option(help="Text of the field `description`.")] = None,
    field: Annotated[
        list[str] | None, typer.Option(help="Text of any other field, NAME=TEXT; may be repeated.")
    ] = None,
    dataset_loc: Annotated[str | None, typer.Option(help="Score this file instead of one row.")] = None,
    output_loc: Annotated[str | None, typer.Option(help="File for the scored rows.")] = None,
    threshold: cli_options.Threshold = None,
    engine: cli_options.Engine = None,
    num_workers: Annotated[int | None, typer.Option(min=1, help="Predictor actors; default: one per core.")] = None,
    home: cli_options.Home = None,
) -> None:
    """Answer one row as JSON, or score a whole file."""
    from madewithml import bulk, runs
    from madewithml import predict as predict_

    given = {"title": title, "description": description, **cli_options.pairs(field, "--field")}
    row = {name: text for name, text in given.items() if text is not None}
    if bool(row) == bool(dataset_loc) or bool(dataset_loc) != bool(output_loc):
        raise errors.UsageError("give either --title and --description, or --dataset-loc and --output-loc")
    settings = config.load(home=home, threshold=threshold, engine=engine)
    folder = runs.connect(settings).best_checkpoint(run_id)
    if dataset_loc and output_loc:
        count = bulk.predict_file(
            folder,
            dataset_loc=dataset_loc,
            output_loc=output_loc,
            engine=settings.engine,
            threshold=settings.threshold,
            num_workers=num_workers,
        )
        print(f"{count} rows written to {output_loc}")
        return
    predictor = predict_.Predictor.from_checkpoint(folder, engine=settings.engine, threshold=settings.threshold)
    unknown = sorted(set(row) - set(predictor.checkpoint.metadata.text_fields))
    if unknown:
        fields = ", ".join(predictor.checkpoint.metadata.text_fields)
        raise errors.UsageError(f"the model has no text field {unknown[0]!r}; it has {fields}")
    text = predictor.texts([row])[0]
    if not text:
        raise errors.InputError("the row has no text")
    if any("\ud800" <= character <= "\udfff" for character in text):  # what Python makes of such bytes
        raise errors.InputError("the row has bytes that are not UTF-8")
    print(json.dumps({"results": predictor.predict([row]), "run_id": run_id}, indent=2, ensure_ascii=False))


@app.command()
def certify(
    run_id: cli_options.RunId,
    dataset_loc: Annotated[
        str | None, typer.Option(help="Labelled rows the model was not fitted on; default: the run's own.")
    ] = None,
    max_risk: Annotated[float, typer.Option(help="Share of errors among accepted answers, at most.")] = 0.05,
    confidence_level: Annotated[float, typer.Option(help="Probability with which that shall hold.")] = 0.95,
    joint: Annotated[bool, typer.Option("--joint", help="All levels of the ladder shall hold at once.")] = False,
    per_class: Annotated[bool, typer.Option("--per-class", help="A threshold and certificate for each label.")] = False,
    candidate_coverage: Annotated[
        float, typer.Option(help="Share of inputs whose class shall be among an abstained answer's candidates.")
    ] = 0.9,
    label_field: cli_options.LabelField = "tag",
    results_fp: cli_options.Results = None,
    home: cli_options.Home = None,
) -> None:
    """Certify the threshold of a run, or say what is missing; exit status 3 if refused."""
    from madewithml import certifying, tables

    cli_options.check_writable(results_fp)
    options = certifying.CertifyOptions(
        run_id=run_id,
        dataset_loc=dataset_loc,
        label_field=label_field,
        max_risk=max_risk,
        confidence_level=confidence_level,
        joint=joint,
        per_class=per_class,
        candidate_coverage=candidate_coverage,
    )
    document = certifying.certify_run(options, config.load(home=home))
    cli_options.write_results(document, results_fp)
    tables.show_certification(document, _console())
    if document["status"] == "refused":
        raise errors.RefusedError(tables.refusal_in_words(document))


@app.command()
def optimize(
    run_id: cli_options.RunId,
    dataset_loc: Annotated[
        str | None, typer.Option(help="Labelled rows the model was not fitted on; default: the run's own.")
    ] = None,
    label_field: cli_options.LabelField = "tag",
    results_fp: cli_options.Results = None,
    home: cli_options.Home = None,
) -> None:
    """Try every engine on this host and keep the fastest that gives the model's own answers."""
    from madewithml import optimize as optimize_
    from madewithml import tables

    cli_options.check_writable(results_fp)
    options = optimize_.OptimizeOptions(run_id=run_id, dataset_loc=dataset_loc, label_field=label_field)
    document = optimize_.optimize_run(options, config.load(home=home))
    cli_options.write_results(document, results_fp)
    tables.show_optimization(document, _console())


@app.command()
def report(
    run_id: cli_options.RunId,
    output: Annotated[Path, typer.Option(help="HTML file to write.")],
    dataset_loc: Annotated[str | None, typer.Option(help="Labelled rows; default: the run's own test rows.")] = None,
    label_field: cli_options.LabelField = "tag",
    home: cli_options.Home = None,
) -> None:
    """Write one self-contained HTML page: how good the run is, and what each threshold would do."""
    from madewithml import report as report_

    report_.write_report(run_id, output, config.load(home=home), dataset_loc=dataset_loc, label_field=label_field)
    print(f"written: {output}")


@app.command()
def promote(
    run_id: cli_options.RunId,
    alias: Annotated[str, typer.Option(help="Alias to move, `champion` for instance.")],
    name: Annotated[str, typer.Option(help="Registered model.")] = "madewithml",
    home: cli_options.Home = None,
) -> None:
    """Register a run's checkpoint and point an alias at it."""
    from madewithml import runs

    version = runs.connect(config.load(home=home)).promote(run_id, name=name, alias=alias)
    print(f"models:/{name}@{alias} is now version {version} (run {run_id})")


@app.command()
def serve(
    run_id: Annotated[str | None, typer.Option("--run-id", help="MLflow run to serve.")] = None,
    model: Annotated[str | None, typer.Option(help="models:/NAME@ALIAS or models:/NAME/VERSION.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Checkpoint folder to serve.")] = None,
    threshold: cli_options.Threshold = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; default 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; default 8000.")] = None,
    replicas: Annotated[str, typer.Option(help="Ray Serve replicas, or `auto`: one per core.")] = "1",
    engine: cli_options.Engine = None,
    local: Annotated[bool, typer.Option("--local", help="Serve without Ray.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes with --local.")] = 1,
    shadow: Annotated[
        str | None, typer.Option(help="models:/NAME@ALIAS of a second model that sees a share of the traffic.")
    ] = None,
    allow_cached: Annotated[
        bool, typer.Option("--allow-cached", help="Start with what was served last if MLflow is away.")
    ] = False,
    keys_file: Annotated[
        Path | None, typer.Option(help="File of API keys; default: keys.json in the state folder, if it is there.")
    ] = None,
    allow_anonymous: Annotated[
        bool, typer.Option("--allow-anonymous", help="Let calls without a key in, also from the network.")
    ] = False,
    home: cli_options.Home = None,
) -> None:
    """Serve a run over HTTP until Ctrl-C; with --model models:/NAME@ALIAS, whatever the alias is moved to."""
    from madewithml.serving import plan

    settings = config.load(
        home=home,
        threshold=threshold,
        host=host,
        port=port,
        engine=engine,
        allow_cached=allow_cached or None,
        keys_file=keys_file,
        allow_anonymous=allow_anonymous or None,
    )
    count = workers if local else cli_options.replica_count(replicas)
    wanted = plan.Wanted(
        settings, run_id=run_id, model=model, checkpoint_folder=checkpoint, replicas=count, shadow=shadow
    )
    if local:
        from madewithml.serving import local as local_

        local_.run(wanted)
    else:
        from madewithml.serving import on_ray

        on_ray.run(wanted)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; ends the process with the exit status."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        app(list(arguments) if arguments is not None else None)
    except errors.MadeWithMLError as err:
        _console(stderr=True).print(f"error: {err.message}", markup=False, soft_wrap=True)
        sys.exit(err.exit_status)


def _console(*, stderr: bool = False) -> rich.console.Console:
    """A terminal that makes no picture of a name such as `:dog:`."""
    return rich.console.Console(stderr=stderr, emoji=False, highlight=False)


if __name__ == "__main__":
    main()
