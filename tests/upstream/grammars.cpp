// For each grammar on standard input: what gbnf_check says about it, and what llama.cpp does with it.
//
//     grammars MODEL        prints "accepted|refused upstream TAB ours" for each; ours is empty where it is accepted
#include <exception>

#include "forked.hpp"

#define mullama mullama_alone
#include "checks/gbnf_check.cpp"

int main(int, char ** arguments) {
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_model_params params = llama_model_default_params();
    params.vocab_only = true;
    llama_model * model = llama_model_load_from_file(arguments[1], params);
    if (model == nullptr) return 1;
    const llama_vocab * vocab = llama_model_get_vocab(model);
    std::string grammar;
    while (read_input(grammar)) {
        std::string ours;
        try {
            mullama::check_gbnf(grammar, vocab);
        } catch (const std::exception & e) {
            ours = e.what();
        }
        const Verdict upstream = in_child(1, [&] {
            llama_sampler * made = llama_sampler_init_grammar(vocab, grammar.c_str(), "root");
            if (made == nullptr) return false;
            llama_sampler * copy = llama_sampler_clone(made);  // a generation starts with the candidates of one token
            llama_token_data data[2] = {{0, 0.0f, 0.0f}, {llama_vocab_n_tokens(vocab) - 1, 0.0f, 0.0f}};
            llama_token_data_array array{data, 2, -1, false};
            llama_sampler_apply(copy, &array);
            return true;
        });
        for (char & c : ours) c = c == '\n' || c == '\t' ? ' ' : c;
        std::printf("%s\t%s\n", name_of(upstream), ours.c_str());
        std::fflush(stdout);
    }
    llama_model_free(model);
}
