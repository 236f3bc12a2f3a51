"""A server of a language model as one writes it in an afternoon with transformers: one request after the other, each a
loop of single tokens over `past_key_values`. It speaks as much of OpenAI's protocol as the measurement needs."""

import json
import pathlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

import torch
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from benchmarks.peers import torchvision_models

torchvision_models()  # before transformers, which imports it
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402


def main(path: str, port: int) -> None:
    """Serves a folder of Hugging Face's or a GGUF file, in float32."""
    file = pathlib.Path(path)
    options: Any = {"gguf_file": file.name} if file.suffix == ".gguf" else {}
    folder = file.parent if options else file
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, **options)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()
    alone = threading.Lock()

    def answer(body: dict[str, Any]) -> Iterator[str]:
        given = tokenizer.apply_chat_template(
            body["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]
        tokens: list[int] = []
        text, cache = "", None
        with alone, torch.inference_mode():
            while len(tokens) < body["max_tokens"]:
                found = model(given, past_key_values=cache, use_cache=True)
                given, cache = found.logits[:, -1:].argmax(-1), found.past_key_values
                if int(given) == tokenizer.eos_token_id:
                    break
                tokens.append(int(given))
                whole = tokenizer.decode(tokens)
                if not whole.endswith("\ufffd"):
                    yield _event([{"index": 0, "delta": {"content": whole[len(text) :]}, "finish_reason": None}])
                    text = whole
        yield _event([], usage={"completion_tokens": len(tokens)})
        yield "data: [DONE]\n\n"

    async def chat(request: Request) -> Response:
        return StreamingResponse(answer(await request.json()), media_type="text/event-stream")

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    routes = [Route("/v1/chat/completions", chat, methods=["POST"]), Route("/health", health)]
    uvicorn.run(Starlette(routes=routes), port=port, log_level="warning")


def _event(choices: list[Any], **more: Any) -> str:
    return f"data: {json.dumps({'choices': choices, **more})}\n\n"


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
