# The tutorial's first program, as it is written: tokens on the console.
from mullama import Model, Context, SamplerParams

model = Model.load("./model.gguf", n_gpu_layers=-1)
ctx = Context(model, n_ctx=2048)

prompt = "The future of artificial intelligence is"
print(f"Prompt: {prompt}")
print("Output: ", end="", flush=True)

# generate_stream returns a list of token pieces
pieces = ctx.generate_stream(prompt, max_tokens=100,
                              params=SamplerParams(temperature=0.8))

for piece in pieces:
    print(piece, end="", flush=True)  # No newline between tokens
print()  # Final newline
