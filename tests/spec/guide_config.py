# The guide's configured stream, as it is written.
from mullama import Model, Context, StreamConfig
model = Model.load("./model.gguf")
context = Context(model)
config = StreamConfig(
    max_tokens=500,
    temperature=0.7,
    top_k=40,
    top_p=0.9,
    stop_sequences=["END"],
    buffer_size=64,
    timeout_ms=30000,
)
for token in context.generate_stream("Hello:", config=config):
    print(token.text, end="", flush=True)
