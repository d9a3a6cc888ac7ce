"""Real offline runs of wandb, read back from their files; nothing reaches for a server."""

import csv
import functools
import json
import re
import socket
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from iec.errors import ConfigError
from iec.io import wandb as loggers
from iec.io.wandb import Logger, LoggerError, check_logger, wandb_mode
from iec.metrics.frechet import FewSamplesWarning
from iec.runs.runner import run_cell
from iec.runs.tracking import log_cell
from iec.tables.command import main as tables

wandb = pytest.importorskip("wandb")
KEY = "0123456789abcdef0123456789abcdef01234567"
SMALL = ["model.random_weights=true", "sampler.steps=2", "num_images=4", "batch_size=4", "device=cpu", "logger=wandb"]
BLOCK, HEADER = 32768, 7


def records(path):
    """Of a .wandb file: protobuf messages in LevelDB's log format, blocks of pieces with (crc32, length, type) before each."""
    from wandb.proto.wandb_internal_pb2 import Record

    data = path.read_bytes()
    assert data[:4] == b":W&B"
    position, message = HEADER, b""
    while position < len(data):
        if BLOCK - position % BLOCK < HEADER:  # no room for another piece in this block
            position += BLOCK - position % BLOCK
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        message += data[position + HEADER : position + HEADER + length]
        position += HEADER + length
        if kind in (1, 4):  # whole, or its last piece
            yield Record.FromString(message)
            message = b""


def read_run(path):
    """What a run's file holds: its RunRecord, configuration, history, and a look-up of its files."""
    run, config, history = None, {}, []
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            config |= {item.key: json.loads(item.value_json) for item in run.config.update}
        elif kind == "history":
            history.append({})
            for item in record.history.item:  # a picture is several items, whose keys begin with the same word
                *outer, last = item.nested_key or [item.key]
                functools.reduce(lambda values, key: values.setdefault(key, {}), outer, history[-1])[last] = json.loads(
                    item.value_json
                )
    return SimpleNamespace(record=run, config=config, history=history, file=lambda value: path.parent / "files" / value["path"])


def runs(output):
    wandb.teardown()  # its service writes files to their end
    return [read_run(path) for path in sorted(output.glob("wandb/offline-run-*/*.wandb"))]


@pytest.fixture(autouse=True)
def server(tmp_path, monkeypatch):
    """No account, no settings, a fresh wandb; whatever it connects to is this server, which counts and says nothing."""
    wandb.teardown()
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_PROJECT", "WANDB_RUN_GROUP", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "settings"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        for name in ("WANDB_BASE_URL", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
            monkeypatch.setenv(name, address)
        connections = []

        def accept():
            while True:
                try:
                    connection, peer = listener.accept()
                except OSError:
                    return
                connections.append(peer)
                connection.close()

        threading.Thread(target=accept, daemon=True).start()
        yield SimpleNamespace(address=address, connections=connections)
        wandb.teardown()  # ends its service
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def finished(make_cell, tmp_path_factory):
    """A cell with scores."""
    output = tmp_path_factory.mktemp("cells")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setenv("WANDB_MODE", "offline")
        warnings.simplefilter("ignore", FewSamplesWarning)
        return run_cell(make_cell(*SMALL, "metrics=efficientnet_lite0", "metrics.bootstrap=5", f"paths.output={output}"))


def moved(result, make_cell, output, *overrides):
    """The same result, whose runs are written elsewhere."""
    overrides = [*SMALL, "metrics=efficientnet_lite0", f"paths.output={output}", f"paths.cell={result.cell.folder}", *overrides]
    return type(result)(make_cell(*overrides), result.store, result.manifest, result.records)


def test_a_cell_is_an_offline_run_that_can_be_read_back(finished, make_cell, tmp_path, server, caplog):
    caplog.set_level("INFO")
    result = moved(finished, make_cell, tmp_path)
    log_cell(result)
    (run,) = runs(tmp_path)
    slug = result.cell.slug
    assert run.record.run_id == slug[-10:] and run.record.display_name == slug and run.record.job_type == "cell"
    assert run.record.project == "iec" and not run.record.run_group
    assert run.config["iec.lambda"] is None and run.config["iec.placement"] == "none" and run.config["num_images"] == 4
    assert run.config["model.name"] == "ddim_cifar_small" and "model" not in run.config
    (values,) = run.history
    assert values["N"] == 4 and values["calls/full"] == 2 and values["calls/total"] == 2
    assert values["seconds_per_image"] == result.manifest.seconds_per_image
    scores = {f"efficientnet_lite0/{name}": score for name, score in result.record.scores.items()}
    for key, score in (scores | {"efficientnet_lite0_deep/fid": result.records[1].scores["fid"]}).items():
        assert [values[key], values[f"{key}_low"], values[f"{key}_high"]] == [score.value, score.low, score.high]
    assert run.file(values["grid"]).read_bytes() == (result.cell.folder / "grid.png").read_bytes()
    (folder,) = re.findall(r"wandb sync (\S+)", caplog.text)
    assert list(Path(folder).glob("*.wandb")) and Path(folder).parent == tmp_path / "wandb"
    assert not server.connections


def test_a_requeue_continues_the_run_and_settings_of_the_logger_are_no_part_of_the_cell(finished, make_cell, tmp_path):
    for overrides in ([], ["logger.group=mine", "logger.project=other", "logger.mode=offline"]):
        log_cell(moved(finished, make_cell, tmp_path, *overrides), group="a table")
    found = runs(tmp_path)
    assert {run.record.run_id for run in found} == {finished.cell.slug[-10:]}
    assert {(run.record.run_group, run.record.project) for run in found} == {("a table", "iec"), ("mine", "other")}


SPEC = """
title: two rows
reference: base
rows:
  base: [iec=none]
  corrected: [iec=all_steps]
"""


def test_a_table_is_a_run_and_its_rows_are_runs_of_its_group(tmp_path, server):
    path = tmp_path / "two.yaml"
    path.write_text(SPEC)
    tables([str(path), "--run", *SMALL, "metrics=none", f"paths.output={tmp_path}"])
    found = {run.record.display_name: run for run in runs(tmp_path)}
    (table,) = [run for run in found.values() if run.record.job_type == "table"]
    assert len(found) == 3 and {run.record.run_group for run in found.values()} == {"two"}
    (values,) = table.history
    logged = json.loads(table.file(values["table"]).read_text())
    (folder,) = (tmp_path / "tables").iterdir()
    header, *body = csv.reader((folder / "table.csv").open())
    assert logged["columns"] == header and "PSNR to ref. (dB)" in header and logged["data"] == body and len(body) == 2
    pictures = {picture.stem: picture for picture in folder.glob("*.png")}
    assert {"grid", "error"} <= pictures.keys() == values.keys() & pictures.keys()
    for name, picture in pictures.items():
        assert table.file(values[name]).read_bytes() == picture.read_bytes()
    assert set(table.config["cells"]) == {"base", "corrected"} and set(table.config["cells"].values()) < found.keys()
    assert not server.connections


def test_the_mode(make_cell, tmp_path, monkeypatch, server):
    def mode(*overrides):
        return wandb_mode(make_cell(*overrides).logger)

    assert mode("logger=wandb") == "offline"
    for name in ("disabled", "dryrun"):
        monkeypatch.setenv("WANDB_MODE", name)
        assert mode("logger=wandb") == name and mode("logger=wandb", "logger.mode=offline") == "offline"
    monkeypatch.delenv("WANDB_MODE")
    with pytest.raises(ConfigError, match="wandb login"):
        make_cell("logger=wandb", "logger.mode=online")
    with pytest.raises(ConfigError, match="online or offline"):
        make_cell("logger.mode=offlin")
    with pytest.raises(ConfigError, match="none, wandb"):
        make_cell("logger.name=tensorboard")
    monkeypatch.setenv("WANDB_API_KEY", "short")
    with pytest.raises(ConfigError, match="40"):
        make_cell("logger=wandb")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert mode("logger=wandb") == "online" == mode("logger=wandb", "logger.mode=online")
    monkeypatch.delenv("WANDB_API_KEY")
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine {server.address.removeprefix('http://')} login user password {KEY}\n")
    netrc.chmod(0o600)
    assert mode("logger=wandb") == "online" and mode("logger=wandb", "logger.mode=offline") == "offline"
    assert not server.connections
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install"):
        check_logger(make_cell("logger=wandb").logger)


@pytest.mark.parametrize("project", [*(f"a{mark}b" for mark in "/\\#?%:"), "x" * 129, "", " "])
def test_projects_that_the_server_refuses_are_refused_before_anything_is_computed(project, server):
    with pytest.raises(ConfigError, match="logger.project"):
        check_logger(Logger("wandb", project))
    assert not server.connections


def test_names_of_the_logger(monkeypatch, server):
    for project in ("a b", "ä-1.2_c", "x" * 128):
        check_logger(Logger("wandb", project, group="a/b: c#?%"))  # a group may have any characters
    check_logger(Logger("none", "a/b"))  # is not used
    for group in ("", " ", "x" * 129):
        with pytest.raises(ConfigError, match="logger.group"):
            check_logger(Logger("wandb", group=group))
    wandb.teardown()
    monkeypatch.setenv("WANDB_PROJECT", "a/b")
    with pytest.raises(ConfigError, match=r"WANDB_\*"):
        check_logger(Logger("wandb"))
    assert not server.connections


def test_a_server_that_does_not_answer_loses_nothing(make_cell, tmp_path, monkeypatch, server):
    """The cell is computed and the table written, and then the command fails."""
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(loggers, "INIT_SECONDS", 1.0)
    path = tmp_path / "one.yaml"
    path.write_text(SPEC.replace("  corrected: [iec=all_steps]\n", ""))
    with pytest.raises(LoggerError, match=r"(?s)finished, but W&B failed.*logger.mode=offline"):
        tables([str(path), "--run", *SMALL, "metrics=none", f"paths.output={tmp_path}"])
    (folder,) = (tmp_path / "tables").iterdir()
    assert (folder / "table.md").read_text().count("\n| ") == 2
    assert server.connections  # so that the other tests would have seen one


def test_what_an_agent_sets_and_what_we_log_do_not_collide(finished, make_cell, tmp_path, monkeypatch):
    """In a sweep the parameters are locked in the configuration, and the id is the agent's."""
    parameters = {"iec": {"value": "none"}, "sampler.steps": {"value": 2}}
    (tmp_path / "parameters.yaml").write_text(yaml.safe_dump({"wandb_version": 1, **parameters}))
    for name, value in {"SWEEP_ID": "sweep", "RUN_ID": "agents", "SWEEP_PARAM_PATH": str(tmp_path / "parameters.yaml")}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    wandb.teardown()
    log_cell(moved(finished, make_cell, tmp_path))
    (run,) = runs(tmp_path)
    assert run.record.run_id == "agents" and run.record.sweep_id == "sweep"
    assert run.config["iec"] == "none" and run.config["sampler.steps"] == 2 and run.config["iec.placement"] == "none"
