// The reference: one sequence decoded and sampled by a plain loop over llama.cpp's C API and common_sampler, nothing else.
//
// It is the reference for the ids that a stream must produce (tests/test_same_tokens.py) and for the rate that it can reach
// (bench/). So it shares no code with mullama/_native, has no threads of its own, no text and no buffer, and measures
// itself: the rate is that of the tokens after the first one, the median of the repeats, prompt excluded.
//
//     c_loop --model FILE (--tokens 1,2,3 | --prompt TEXT) [--n 128] [--threads 2] [--ctx 512] [--batch 2048]
//            [--ubatch 512] [--warm-up 1] [--repeat 5] [--logprobs] [--logits FILE] [--SAMPLER-FIELD VALUE …]
//
// The sampler's fields have the names of mullama.SamplerParams, with the same defaults (`--top-k 40`, `--seed 1`,
// `--ignore-eos 1`, `--logit-bias 13:-2.5,14:1`). Prints one JSON object. `--logits` writes the raw float32 logits that
// each token was chosen from, one row of n_vocab per token; like `--logprobs` it takes time, so do not use it to measure.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "common.h"
#include "llama.h"
#include "sampling.h"

namespace {

using Clock = std::chrono::steady_clock;

struct Options {
    std::string model, prompt, logits;
    std::vector<llama_token> tokens;
    int n = 128, threads = 0, n_ctx = 512, n_batch = 2048, n_ubatch = 512, warm_up = 1, repeat = 5;
    bool logprobs = false;
    common_params_sampling sampling;
};

struct Run {
    std::vector<llama_token> tokens;
    std::vector<double> logprobs;
    double prefill_s = 0;  // the prompt, and sampling the first token
    double decode_s = 0;   // from the first token to the last
    double rate() const { return tokens.size() > 1 ? double(tokens.size() - 1) / decode_s : 0; }
};

template <typename Function> void each_item(const std::string & list, Function && function) {
    std::istringstream items(list);
    for (std::string item; std::getline(items, item, ',');) function(item);
}

Options parse(int argc, char ** argv) {
    Options o;
    auto & s = o.sampling;
    s.min_p = 0.0f;  // upstream's default is 0.05
    s.no_perf = true;
    std::map<std::string, std::function<void(const std::string &)>> options;
    const auto text = [&](const char * name, std::string & to) { options[name] = [&to](const std::string & v) { to = v; }; };
    const auto integer = [&](const char * name, int32_t & to) {
        options[name] = [&to](const std::string & v) { to = int32_t(std::stol(v)); };
    };
    const auto real = [&](const char * name, float & to) { options[name] = [&to](const std::string & v) { to = std::stof(v); }; };
    text("--model", o.model);
    text("--prompt", o.prompt);
    text("--logits", o.logits);
    options["--tokens"] = [&](const std::string & v) { each_item(v, [&](const std::string & id) { o.tokens.push_back(std::stoi(id)); }); };
    integer("--n", o.n);
    integer("--threads", o.threads);
    integer("--ctx", o.n_ctx);
    integer("--batch", o.n_batch);
    integer("--ubatch", o.n_ubatch);
    integer("--warm-up", o.warm_up);
    integer("--repeat", o.repeat);
    options["--seed"] = [&](const std::string & v) { s.seed = uint32_t(std::stoul(v)); };
    real("--temperature", s.temp);
    real("--dynatemp-range", s.dynatemp_range);
    real("--dynatemp-exponent", s.dynatemp_exponent);
    integer("--top-k", s.top_k);
    integer("--min-keep", s.min_keep);
    real("--top-p", s.top_p);
    real("--min-p", s.min_p);
    real("--typical-p", s.typ_p);
    real("--top-n-sigma", s.top_n_sigma);
    real("--xtc-probability", s.xtc_probability);
    real("--xtc-threshold", s.xtc_threshold);
    integer("--penalty-last-n", s.penalty_last_n);
    real("--repeat-penalty", s.penalty_repeat);
    real("--frequency-penalty", s.penalty_freq);
    real("--presence-penalty", s.penalty_present);
    real("--dry-multiplier", s.dry_multiplier);
    real("--dry-base", s.dry_base);
    integer("--dry-allowed-length", s.dry_allowed_length);
    integer("--dry-penalty-last-n", s.dry_penalty_last_n);
    integer("--mirostat", s.mirostat);
    real("--mirostat-tau", s.mirostat_tau);
    real("--mirostat-eta", s.mirostat_eta);
    real("--adaptive-target", s.adaptive_target);
    real("--adaptive-decay", s.adaptive_decay);
    options["--samplers"] = [&](const std::string & v) {
        std::vector<std::string> names;
        each_item(v, [&](const std::string & name) { names.push_back(name); });
        s.samplers = common_sampler_types_from_names(names);
    };
    options["--grammar"] = [&](const std::string & v) { s.grammar = {COMMON_GRAMMAR_TYPE_USER, v}; };
    options["--ignore-eos"] = [&](const std::string & v) { s.ignore_eos = std::stoi(v) != 0; };
    options["--logit-bias"] = [&](const std::string & v) {
        each_item(v, [&](const std::string & item) {
            const size_t colon = item.find(':');
            s.logit_bias.push_back({std::stoi(item.substr(0, colon)), std::stof(item.substr(colon + 1))});
        });
    };
    for (int i = 1; i < argc; ++i) {
        const std::string name = argv[i];
        if (name == "--logprobs") {
            o.logprobs = true;
        } else if (options.count(name) == 0 || i + 1 == argc) {
            throw std::runtime_error("unknown option, or no value for it: " + name);
        } else {
            options[name](argv[++i]);
        }
    }
    if (o.model.empty() || o.n < 1 || o.repeat < 1) throw std::runtime_error("--model FILE is required, --n and --repeat must be at least 1");
    return o;
}

double log_softmax(const float * logits, int n_vocab, llama_token token) {
    const double top = *std::max_element(logits, logits + n_vocab);
    double sum = 0;
    for (int i = 0; i < n_vocab; ++i) sum += std::exp(logits[i] - top);
    return logits[token] - top - std::log(sum);
}

Run generate(llama_context * ctx, const Options & o, std::ofstream * logits_file) {
    const llama_model * model = llama_get_model(ctx);
    const llama_vocab * vocab = llama_model_get_vocab(model);
    const int n_vocab = llama_vocab_n_tokens(vocab);
    common_params_sampling params = o.sampling;
    common_sampler_ptr sampler(common_sampler_init(model, params));
    if (!sampler) throw std::runtime_error("llama.cpp cannot create a sampler with these parameters");
    for (llama_token token : o.tokens) common_sampler_accept(sampler.get(), token, false);
    llama_memory_clear(llama_get_memory(ctx), true);

    Run run;
    run.tokens.reserve(size_t(o.n));
    std::vector<llama_token> prompt = o.tokens;
    const auto began = Clock::now();
    for (size_t i = 0; i < prompt.size(); i += size_t(o.n_batch)) {
        const auto n = int32_t(std::min(prompt.size() - i, size_t(o.n_batch)));
        if (llama_decode(ctx, llama_batch_get_one(&prompt[i], n)) != 0) throw std::runtime_error("llama_decode failed");
    }
    auto first = began;
    while (true) {
        llama_token token = common_sampler_sample(sampler.get(), ctx, -1);
        common_sampler_accept(sampler.get(), token, true);
        run.tokens.push_back(token);
        if (run.tokens.size() == 1) first = Clock::now();
        if (o.logprobs || logits_file != nullptr) {
            const float * logits = llama_get_logits_ith(ctx, -1);
            if (o.logprobs) run.logprobs.push_back(log_softmax(logits, n_vocab, token));
            if (logits_file != nullptr) logits_file->write(reinterpret_cast<const char *>(logits), n_vocab * long(sizeof *logits));
        }
        const bool full = prompt.size() + run.tokens.size() > size_t(o.n_ctx);
        if (llama_vocab_is_eog(vocab, token) || int(run.tokens.size()) == o.n || full) break;
        if (llama_decode(ctx, llama_batch_get_one(&token, 1)) != 0) throw std::runtime_error("llama_decode failed");
    }
    run.prefill_s = std::chrono::duration<double>(first - began).count();
    run.decode_s = std::chrono::duration<double>(Clock::now() - first).count();
    return run;
}

double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    const size_t n = values.size();
    return (values[(n - 1) / 2] + values[n / 2]) / 2;
}

template <typename T> void print_list(const char * name, const std::vector<T> & values, const char * format) {
    std::printf("\"%s\": [", name);
    for (size_t i = 0; i < values.size(); ++i) {
        if (i > 0) std::printf(", ");
        std::printf(format, values[i]);
    }
    std::printf("]");
}

int run_all(int argc, char ** argv) {
    Options o = parse(argc, argv);
    llama_log_set(
        [](ggml_log_level level, const char * line, void *) {
            if (level == GGML_LOG_LEVEL_ERROR) std::fputs(line, stderr);
        },
        nullptr);
    llama_backend_init();
    std::unique_ptr<llama_model, decltype(&llama_model_free)> model(
        llama_model_load_from_file(o.model.c_str(), llama_model_default_params()), llama_model_free);
    if (!model) throw std::runtime_error("cannot load " + o.model);
    const llama_vocab * vocab = llama_model_get_vocab(model.get());
    if (o.tokens.empty()) o.tokens = common_tokenize(vocab, o.prompt, true, true);
    if (o.tokens.empty()) throw std::runtime_error("--tokens IDS or --prompt TEXT is required");
    if (o.sampling.ignore_eos) {
        for (llama_token token = 0; token < llama_vocab_n_tokens(vocab); ++token) {
            if (llama_vocab_is_eog(vocab, token)) o.sampling.logit_bias.push_back({token, -INFINITY});
        }
    }

    llama_context_params params = llama_context_default_params();
    params.n_ctx = uint32_t(o.n_ctx);
    params.n_seq_max = 1;
    params.n_batch = uint32_t(o.n_batch);
    params.n_ubatch = uint32_t(std::min(o.n_ubatch, o.n_batch));
    params.n_threads = params.n_threads_batch = o.threads > 0 ? o.threads : common_cpu_get_num_math();
    params.swa_full = true;
    params.no_perf = true;
    std::unique_ptr<llama_context, decltype(&llama_free)> ctx(llama_init_from_model(model.get(), params), llama_free);
    if (!ctx) throw std::runtime_error("llama.cpp could not make the context");
    o.n_ctx = int(llama_n_ctx_seq(ctx.get()));
    if (int(o.tokens.size()) >= o.n_ctx) throw std::runtime_error("the prompt is longer than the context");

    std::ofstream logits_file;
    if (!o.logits.empty()) logits_file.open(o.logits, std::ios::binary);
    for (int i = 0; i < o.warm_up; ++i) generate(ctx.get(), o, nullptr);
    std::vector<Run> runs;
    std::vector<double> rates, prefills;
    for (int i = 0; i < o.repeat; ++i) {
        runs.push_back(generate(ctx.get(), o, i == 0 && logits_file.is_open() ? &logits_file : nullptr));
        rates.push_back(runs.back().rate());
        prefills.push_back(1e3 * runs.back().prefill_s);
    }

    std::printf("{\"n_threads\": %d, ", params.n_threads);
    print_list("prompt", o.tokens, "%d");
    std::printf(", ");
    print_list("tokens", runs[0].tokens, "%d");
    if (o.logprobs) {
        std::printf(", ");
        print_list("logprobs", runs[0].logprobs, "%.9g");
    }
    std::printf(", \"tokens_per_second\": %.3f, \"prefill_ms\": %.3f, ", median(rates), median(prefills));
    print_list("rates", rates, "%.3f");
    std::printf("}\n");
    ctx.reset();
    model.reset();
    llama_backend_free();
    return 0;
}

}  // namespace

int main(int argc, char ** argv) {
    try {
        return run_all(argc, argv);
    } catch (const std::exception & e) {
        std::fprintf(stderr, "c_loop: %s\n", e.what());
        return 1;
    }
}
