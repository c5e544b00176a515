"""Keys and prompts are in no log, no metric and no error, whatever is done with them."""

from __future__ import annotations

import json

import httpx

from support.served import Served

PROMPT = "the-patient-is-called-rumpelstiltskin"
WRONG = "sk-softmux-0123456789ab-not-a-key-of-anybody"


def test_nothing_secret_is_told(keyed: Served) -> None:
    answers: list[httpx.Response] = []

    def post(path: str, **more: object) -> httpx.Response:
        answer = keyed.http.post(path, **more)  # type: ignore[arg-type]
        answers.append(answer)
        return answer

    made = keyed.http.post("/v1/keys", json={"tenant": "default", "role": "user"}).json()
    keys = [made["key"], WRONG, str(keyed.http.headers["authorization"]).removeprefix("Bearer ")]
    with httpx.Client(base_url=keyed.url) as other:
        for key in (made["key"], WRONG, WRONG[:20]):
            answers.append(other.get("/v1/model", headers={"authorization": f"Bearer {key}"}))
            answers.append(other.get(f"/v1/model?key={key}", headers={"authorization": f"Basic {key}"}))
    assert post("/v1/generate", json={"prompt": PROMPT, "max_tokens": 1}).status_code == 200
    post("/v1/generate", json={"prompt": PROMPT, "max_tokens": "many"})
    post("/v1/generate", json={"prompt": [PROMPT, 3]})
    post("/v1/generate", json={"prompt": PROMPT * 100})
    post("/v1/generate", params={"task": "missing"}, json={"prompt": PROMPT})
    post("/v1/generate", json={"messages": [{"role": "user", "content": PROMPT, "odd": 1}]})
    post("/v1/generate", content=json.dumps({"prompt": PROMPT}).encode()[:-1])
    post("/v1/classify", params={"task": "prompt-tuning"}, json={"input": PROMPT})
    post("/v1/generate", params={"task": "prompt-tuning"}, json={"prompt": PROMPT, "stream": True, "n": 2})
    keyed.http.delete(f"/v1/keys/{made['id']}")

    told = {
        "log": keyed.log.read_text(),
        "metrics": keyed.http.get("/metrics").text,
        "keys": keyed.http.get("/v1/keys").text,
        **{f"answer {number}": answer.text for number, answer in enumerate(answers) if answer.status_code >= 400},
    }
    for where, text in told.items():
        for key in keys:
            assert key not in text, f"a key in {where}"
        assert PROMPT not in text, f"a prompt in {where}: {text[:500]}"
