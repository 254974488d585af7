"""What Schemathesis must know of this server: a media type, and names of things that are there, without which it would meet little but 404."""
import os
import time

import requests
import schemathesis

server = requests.Session()
server.headers["Authorization"] = "Bearer " + os.environ["BHIVE_API_KEY"]
URL = os.environ["BHIVE_URL"]
ADAPTER = "there"


def prepare():
    answer = server.post(URL + "/adapters", json={"name": ADAPTER, "max_steps": 1, "rank": 4, "examples": [{"prompt": "a", "completion": "b"}]})
    if answer.status_code not in (202, 409):
        raise RuntimeError(answer.text)
    while server.get(f"{URL}/adapters/{ADAPTER}").json()["live_version"] is None:
        time.sleep(0.1)
    return server.post(URL + "/v1/files", data={"purpose": "fine-tune"}, files={"file": ("a.jsonl", b'{"text": "a b c"}\n')}).json()["id"]


FILE = prepare()


@schemathesis.serializer("application/x-tar")
def tar(context, value):
    return value if isinstance(value, bytes) else str(value).encode()


@schemathesis.hook
def map_path_parameters(context, path_parameters):
    """Every second name is one that exists."""
    if path_parameters and len(str(path_parameters)) % 2 == 0:
        for name, value in (("name", ADAPTER), ("version", 1), ("file", FILE), ("model", ADAPTER)):
            if name in path_parameters:
                path_parameters[name] = value
    return path_parameters


@schemathesis.hook
def before_call(context, case, kwargs):
    """What exists stays, the API key above all."""
    if case.method.upper() == "DELETE":
        for name, value in (case.path_parameters or {}).items():
            if value in (ADAPTER, FILE) or case.operation.path.startswith("/admin/keys"):
                case.path_parameters[name] = "gone"


@schemathesis.hook
def map_body(context, body):
    """Models and files that exist, and texts that end soon."""
    if not isinstance(body, dict) or len(str(body)) % 4 == 0:
        return body
    for name, value in (("model", "demo"), ("training_file", FILE), ("validation_file", None), ("parent", ADAPTER)):
        if isinstance(body.get(name), str):
            body[name] = value
    for name in ("max_tokens", "max_completion_tokens", "max_steps", "n", "min_tokens"):
        if isinstance(body.get(name), int):
            body[name] = min(body[name], 4)
    if context.operation.path == "/adapters" or context.operation.path.endswith("/jobs") or context.operation.path.endswith("/examples"):
        body.setdefault("max_steps", 1)
    if context.operation.path == "/adapters" or context.operation.path.endswith("/examples"):
        body["examples"] = body.get("examples") or [{"text": "a b c"}]
    return body
