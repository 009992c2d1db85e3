"""Server-sent events with FastAPI, and the client that reads them; run by itself it asks its own server once.

    pip install fastapi uvicorn httpx
    python examples/web_fastapi.py [MODEL]
    uvicorn --app-dir examples web_fastapi:app --port 3000      # to keep it running
    curl --no-buffer --json '{"prompt": "Once upon a time"}' http://127.0.0.1:3000/stream

`examples/web_asgi.py` does the same without a framework.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from mullama import AsyncModel, MullamaError, StreamConfig


class Request(BaseModel):
    prompt: str
    max_tokens: int = 200


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """One model for the whole application. Requests that come at once share its batch."""
    async with await AsyncModel.load(os.environ.get("MODEL")) as app.state.model:
        yield


app = FastAPI(lifespan=lifespan)
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # the second one is for nginx


@app.post("/generate")
async def generate(request: Request) -> StreamingResponse:
    """Each token's text as an event, then [DONE]."""

    async def events() -> AsyncIterator[str]:
        async with app.state.model.generate_stream(request.prompt, request.max_tokens) as stream:
            async for token in stream:
                yield f"data: {json.dumps({'text': token})}\n\n"
        yield "data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream", headers=HEADERS)


@app.post("/stream")
async def stream(request: Request) -> StreamingResponse:
    """Numbered tokens. A client that goes away cancels the response, and so the generation; nothing is to be checked."""

    async def events() -> AsyncIterator[str]:
        index = 0
        config = StreamConfig(max_tokens=request.max_tokens, temperature=0.7)
        try:
            async with app.state.model.generate_stream(request.prompt, config) as stream:
                async for token in stream:
                    yield f"data: {json.dumps({'token': token, 'index': index, 'done': False})}\n\n"
                    index += 1
            yield f"data: {json.dumps({'token': '', 'index': index, 'done': True})}\n\n"
        except MullamaError as error:  # the status has been sent long ago
            yield f"data: {json.dumps({'error': error.code})}\n\n"

    return StreamingResponse(events(), media_type="text/event-stream", headers=HEADERS)


async def read_stream(client: httpx.AsyncClient, prompt: str, max_tokens: int = 200) -> AsyncIterator[str]:
    """What a browser's fetch() would do: post, and take the events apart as they come."""
    body = {"prompt": prompt, "max_tokens": max_tokens}
    async with client.stream("POST", "/stream", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                event = json.loads(line.removeprefix("data: "))
                if event.get("done") or "error" in event:
                    return
                yield event["token"]


@asynccontextmanager
async def serving() -> AsyncIterator[str]:
    """The application on a free port of this machine, for the time of the block."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none"))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"  # connections wait until the server takes them
    finally:
        server.should_exit = True
        await task


async def main() -> None:
    async with serving() as url, httpx.AsyncClient(base_url=url, timeout=60) as client:
        print("Once upon a time", end="")
        async for text in read_stream(client, "Once upon a time", 60):
            print(text, end="", flush=True)
        response = await client.post("/generate", json={"prompt": "Long ago", "max_tokens": 5})
        print("\n", response.text, sep="")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        os.environ["MODEL"] = sys.argv[1]
    asyncio.run(main())
