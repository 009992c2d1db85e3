"""Server-sent events with FastAPI, and the client that reads them; run by itself it asks its own server once.

    pip install fastapi uvicorn httpx
    python examples/web_fastapi.py [MODEL]
    uvicorn --app-dir examples web_fastapi:app --port 3000      # to keep it running
    curl --no-buffer --json '{"prompt": "Once upon a time"}' http://127.0.0.1:3000/stream

Without a model the start-up fails. A request is answered with 200 only when its first token is there.
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
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel

from mullama import AsyncModel, MullamaError, StreamConfig, TokenData, TokenizationError, TokenStream


class Prompt(BaseModel):
    prompt: str
    max_tokens: int = 200


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """One model for the whole application. Requests that come at once share its batch."""
    async with await AsyncModel.load(os.environ.get("MODEL")) as app.state.model:
        yield


app = FastAPI(lifespan=lifespan)
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # the second one is for nginx


@app.exception_handler(MullamaError)
async def refuse(request: Request, error: MullamaError) -> JSONResponse:
    """Where nothing has been sent yet: 422 as FastAPI itself has it for a bad value, or 503."""
    bad = isinstance(error, (ValueError, TokenizationError)) or error.code == "PROMPT_TOO_LONG"
    return JSONResponse({"detail": str(error), "code": error.code}, 422 if bad else 503)


async def started(prompt: str, config: StreamConfig) -> tuple[TokenStream, TokenData | None]:
    """A stream and its first token. Whatever is wrong with the request is raised here, before a status is sent."""
    stream: TokenStream = app.state.model.generate_stream(prompt, config)
    return stream, await stream.next()


@app.post("/generate")
async def generate(body: Prompt) -> StreamingResponse:
    """Each token's text as an event, then [DONE]."""
    stream, token = await started(body.prompt, StreamConfig(max_tokens=body.max_tokens))

    async def events() -> AsyncIterator[str]:
        nonlocal token
        try:
            async with stream:
                while token is not None:
                    yield f"data: {json.dumps({'text': token})}\n\n"
                    token = await stream.next()
            yield "data: [DONE]\n\n"
        except MullamaError as error:  # the status has been sent long ago
            yield f"data: {json.dumps({'error': error.code})}\n\n"

    return StreamingResponse(events(), media_type="text/event-stream", headers=HEADERS)


@app.post("/stream")
async def stream(body: Prompt) -> StreamingResponse:
    """Numbered tokens. A client that goes away cancels the response, and so the generation; nothing is to be checked."""
    stream, token = await started(body.prompt, StreamConfig(max_tokens=body.max_tokens, temperature=0.7))

    async def events() -> AsyncIterator[str]:
        nonlocal token
        index = 0
        try:
            async with stream:
                while token is not None:
                    yield f"data: {json.dumps({'token': token, 'index': index, 'done': False})}\n\n"
                    index += 1
                    token = await stream.next()
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
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none", lifespan="off"))
    async with lifespan(app):  # here rather than in the server, so that its errors come out of here
        listener = socket.create_server(("127.0.0.1", 0))
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
        refused = await client.post("/generate", json={"prompt": "Long ago", "max_tokens": 0})
        print(refused.status_code, refused.text)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        os.environ["MODEL"] = sys.argv[1]
    try:
        asyncio.run(main())
    except MullamaError as error:
        sys.exit(str(error))
