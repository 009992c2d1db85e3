# Included by ggml's project where MULLAMA_SANITIZE=thread: the loops that compute stay without instruments, with which each token
# takes ten times as long. The rest of llama.cpp has them, and so has threads/gomp.cpp, by which those threads wait for each other.
add_compile_options("$<$<STREQUAL:$<TARGET_PROPERTY:NAME>,ggml-cpu>:-fno-sanitize=thread;-O3>")
