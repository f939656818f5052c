"Laws of the files that deploy a server: they can be read, nobody is root, every version is named."
import configparser
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from minigpt.cli import build_parser

yaml = pytest.importorskip("yaml")
DEPLOY = Path(__file__).parent.parent / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text("utf-8")
STEPS = [(line.split(maxsplit=1)) for line in
         re.sub(r"\\\n\s*", "", re.sub(r"(?m)^#.*\n", "", DOCKERFILE)).splitlines() if line]
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
WORKFLOW = yaml.safe_load((DEPLOY.parent / ".github/workflows/tests.yml").read_text("utf-8"))
UNIT = configparser.RawConfigParser(strict=True)
UNIT.optionxform = str
UNIT.read(DEPLOY / "minigpt.service", encoding="utf-8")


def command(words):
    "What the command understands of its words."
    return build_parser().parse_args(["serve", *words])


def last(word):
    return [rest for name, rest in STEPS if name == word][-1]


def is_pinned(image):
    name, _, tag = image.partition(":")
    return bool(re.match(r"v?\d", tag)) or tag in ("1",)


def test_the_image_names_its_versions_and_ends_as_a_user_who_is_not_root():
    words = {name for name, _ in STEPS}
    assert words <= {"FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "USER", "EXPOSE", "STOPSIGNAL",
                     "HEALTHCHECK", "ENTRYPOINT", "CMD"}
    bases = [rest.split()[0] for name, rest in STEPS if name == "FROM"]
    assert len(bases) == 2 and all(map(is_pinned, bases))
    uid, gid = map(int, last("USER").split(":"))
    assert uid >= 1000 and gid >= 1000 and last("STOPSIGNAL") == "SIGTERM"
    assert [name for name, _ in STEPS].index("USER") < [name for name, _ in STEPS].index("CMD")
    assert "[serve" in DOCKERFILE and "--constraint requirements.txt" in DOCKERFILE
    assert not re.search(r"(?i)\b(curl|wget|sudo|--privileged|ADD )\b", DOCKERFILE)


def test_what_the_image_runs_is_a_command_of_ours():
    assert json.loads(last("ENTRYPOINT")) == ["minigpt", "serve"]
    args = command(json.loads(last("CMD")))
    assert args.host == "0.0.0.0" and str(args.port) == last("EXPOSE") == "8000"
    check = json.loads(last("HEALTHCHECK").partition("CMD ")[2])
    assert check[:2] == ["python", "-c"] and f"127.0.0.1:{args.port}/health" in check[2]
    compile(check[2], "healthcheck", "exec")


def test_the_image_gets_what_it_copies_and_no_more():
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8").split()
    kept = {line[1:] for line in ignored if line.startswith("!")}
    copied = {name.strip("./") for word, rest in STEPS if word == "COPY" and "--from" not in rest
              for name in rest.split()[:-1]}
    assert ignored[0] == "*" and copied == kept
    assert all((DEPLOY.parent / name).exists() for name in copied)


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_each_service_is_pinned_bound_to_loopback_and_may_do_little(name):
    service = COMPOSE["services"][name]
    assert is_pinned(service["image"]) and int(service["user"].split(":")[0]) > 0
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"] and service["mem_limit"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert set(service["secrets"]) <= COMPOSE["secrets"].keys()


def test_the_services_fit_each_other():
    ours = COMPOSE["services"]["minigpt"]
    args = command(list(map(str, ours["command"])))
    assert args.api_key_file == "/run/secrets/api_key" and "api_key" in ours["secrets"]
    assert int(ours["stop_grace_period"].rstrip("s")) > args.drain + 5
    assert (DEPLOY / ours["build"]["context"] / ours["build"]["dockerfile"]).is_file()
    assert ours["user"] == last("USER")
    figures = yaml.safe_load((DEPLOY / "prometheus.yml").read_text("utf-8"))
    [job] = figures["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"minigpt:{args.port}"]}]
    assert job["authorization"]["credentials_file"] == args.api_key_file
    assert "./prometheus.yml:/etc/prometheus/prometheus.yml:ro" in \
        COMPOSE["services"]["prometheus"]["volumes"]


def test_the_unit_keeps_its_key_in_a_file_and_may_do_little():
    service = dict(UNIT["Service"])
    args = command(shlex.split(service["ExecStart"])[2:])
    assert service["ExecStart"].startswith("/opt/minigpt/bin/minigpt serve ")
    assert args.host == "127.0.0.1" and int(service["TimeoutStopSec"]) > args.drain + 5
    assert service["EnvironmentFile"] == "/etc/minigpt.env" and "KEY" not in service["Environment"]
    assert service["DynamicUser"] == service["NoNewPrivileges"] == "yes"
    assert service["ProtectSystem"] == "strict" and service["CapabilityBoundingSet"] == ""
    assert service["SystemCallFilter"] == "@system-service" and service["Restart"] == "on-failure"
    assert UNIT["Install"]["WantedBy"] == "multi-user.target"


def test_the_workflow_builds_the_image_and_asks_it():
    steps = "\n".join(step.get("run", "") for step in WORKFLOW["jobs"]["image"]["steps"])
    for words in ("docker build", "deploy/Dockerfile", "--read-only", "/v1/chat/completions",
                  "docker stop", "ExitCode", "config --quiet"):
        assert words in steps, words


def test_the_server_needs_no_place_to_write(tmp_path):
    "In an empty folder where nothing may be written, and with no home, it answers all the same."
    if os.name == "nt":
        pytest.skip("Windows has other rights")
    tmp_path.chmod(0o555)
    code = ("from minigpt import load; from minigpt.server import running_server; "
            "from urllib.request import urlopen\n"
            "with running_server(*load('chat')) as url: print(urlopen(url + '/health').status)")
    root = str(DEPLOY.parent)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True,
                          text=True, timeout=300,
                          env={"PATH": os.environ["PATH"], "HOME": str(tmp_path / "none"),
                               "PYTHONPATH": root, "PYTHONDONTWRITEBYTECODE": "1"})
    tmp_path.chmod(0o755)
    assert (done.stdout, done.returncode) == ("200\n", 0), done.stderr
    assert list(tmp_path.iterdir()) == []
