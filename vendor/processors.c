// Which of the two builds of ggml's code for the processor computes, in a portable build for x86-64 (tools/build_llama.py).
struct ggml_backend_reg;
struct ggml_backend_reg * ggml_backend_cpu_reg(void);
struct ggml_backend_reg * ggml_backend_cpu_reg_fast(void);
struct ggml_backend_reg * ggml_backend_cpu_reg_plain(void);

struct ggml_backend_reg * ggml_backend_cpu_reg(void) {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) {
        return ggml_backend_cpu_reg_fast();
    }
    return ggml_backend_cpu_reg_plain();
}
