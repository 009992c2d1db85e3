// Our way to choose a token under a grammar and a limit on reasoning, held against common_sampler_sample: the same tokens, with the
// same random numbers, also where following the grammar is interrupted again and again.
//
//     choices MODEL        prints "case TAB tokens TAB turns TAB upstream's µs TAB ours" for each, or a line that begins with !
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <random>
#include <string>
#include <vector>

#define mullama mullama_alone
#include "checks/abort_guard.cpp"
#include "checks/gbnf_check.cpp"
#include "checks/work_limit.cpp"
#include "model/log.cpp"
#include "sampling/constraint.cpp"
#include "sampling/logits.cpp"
#include "sampling/sampler.cpp"
#include "sampling/shortlist.cpp"

namespace {

using Params = common_params_sampling;

const llama_vocab * vocab;

std::vector<llama_token> tokens_of(const char * text) { return common_tokenize(vocab, text, false, true); }

Params with_grammar(const std::string & gbnf, common_grammar_type type = COMMON_GRAMMAR_TYPE_USER) {
    Params params;
    params.grammar = {type, gbnf};
    return params;
}

Params lazy(common_grammar_trigger_type type, const std::string & value, llama_token token = LLAMA_TOKEN_NULL) {
    Params params = with_grammar("root ::= [abce] [a-z]* \".\" [a-z. ]*");
    params.grammar_lazy = true;
    params.grammar_triggers.push_back({type, value, token});
    return params;
}

Params thinking(Params params, int32_t n_tokens) {
    params.reasoning_budget_start = tokens_of("t");
    params.reasoning_budget_end = {tokens_of("e"), tokens_of("no")};
    params.reasoning_budget_forced = tokens_of("so n");
    params.reasoning_budget_tokens = n_tokens;
    return params;
}

struct Case {
    std::string name;
    Params params;
    std::string likely = "abcdefghijklmnopqrstuvwxyz .\"{}[]:,0123456789";  // letters that are made likely
};

std::vector<Case> cases() {
    const std::string schema = R"({"type": "object", "properties": {"name": {"type": "string"}, "n": {"type": "integer"},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}}}, "required": ["name", "n", "tags"]})";
    const std::string json = json_schema_to_grammar(common_json::parse(schema), true);
    const char * const letters = "root ::= [a-z ]*";
    std::vector<Case> all = {{"plain", {}}, {"letters", with_grammar(letters)}, {"json", with_grammar(json)}};
    all.push_back({"ambiguous", with_grammar("root ::= (x | y)* \".\"\nx ::= [a-z] | [a-m]? [a-z]\ny ::= \"b\"? \"c\"? [a-z ]"), "abcx "});
    all.push_back({"prefilled", with_grammar("root ::= \"Once\" \" \"? [a-z ]* \".\"", COMMON_GRAMMAR_TYPE_OUTPUT_FORMAT)});
    all.back().params.generation_prompt = "Once";
    all.push_back({"word", lazy(COMMON_GRAMMAR_TRIGGER_TYPE_WORD, "a")});
    all.push_back({"pattern", lazy(COMMON_GRAMMAR_TRIGGER_TYPE_PATTERN, "[xyz]([abc])")});
    all.push_back({"whole pattern", lazy(COMMON_GRAMMAR_TRIGGER_TYPE_PATTERN_FULL, "[^b]*(b[\\s\\S]*)"), "abcdefg"});
    all.push_back({"token", lazy(COMMON_GRAMMAR_TRIGGER_TYPE_TOKEN, "", tokens_of("b").back())});
    all.push_back({"thinking", thinking({}, 4)});
    all.push_back({"no thinking", thinking({}, 0)});
    all.push_back({"thinking, then letters", thinking(with_grammar(letters), 3)});
    all.push_back({"thinking, then a word", thinking(lazy(COMMON_GRAMMAR_TRIGGER_TYPE_WORD, "a"), 6), "atexy"});
    all.push_back({"thinking that ends in the trigger", thinking(lazy(COMMON_GRAMMAR_TRIGGER_TYPE_WORD, "e"), -1), "atexyno"});
    const std::vector<Case> once = all;
    for (const auto & [name, change] : std::vector<std::pair<const char *, void (*)(Params &)>>{
             {"greedy", [](Params & p) { p.temp = 0; }},
             {"all tokens", [](Params & p) { p.top_k = 0; p.top_p = 1; p.min_p = 0; }},
             {"penalties", [](Params & p) { p.penalty_repeat = 1.3f; p.penalty_freq = 0.2f; p.dry_multiplier = 0.8f; }},
             {"mirostat", [](Params & p) { p.mirostat = 2; }},
             {"xtc", [](Params & p) { p.samplers = {COMMON_SAMPLER_TYPE_TEMPERATURE, COMMON_SAMPLER_TYPE_XTC}; p.xtc_probability = 0.5f; }}}) {
        for (Case one : once) {
            one.name += std::string(", ") + name;
            change(one.params);
            all.push_back(one);
        }
    }
    return all;
}

struct Totals {
    int tokens = 0, turns = 0;
    double upstream = 0, ours = 0;
};

// One text, token by token. False: they differ.
bool compare(llama_model * model, llama_context * ctx, const Case & one, uint32_t seed, Totals & totals) {
    Params theirs = one.params, mine = one.params;
    theirs.seed = mine.seed = seed;
    const int32_t n_vocab = llama_vocab_n_tokens(vocab);
    const auto prompt = tokens_of("Once upon a time");
    common_sampler * upstream = common_sampler_init(model, theirs);
    mullama::Sampler ours(model, mine, {prompt.begin(), prompt.end()}, {});
    for (const llama_token token : prompt) common_sampler_accept(upstream, token, false);
    std::vector<int32_t> likely;
    for (const char letter : one.likely) likely.push_back(tokens_of(std::string(1, letter).c_str()).back());
    std::mt19937 random(seed);
    std::normal_distribution<float> noise(0, 2);
    float * const row = llama_get_logits_ith(ctx, 0);
    bool same = true;
    for (int i = 0; same && i < 60; ++i) {
        std::generate(row, row + n_vocab, [&] { return noise(random); });
        for (int k = 0; k < 4; ++k) row[likely[random() % likely.size()]] += 9;
        std::vector<float> copy(row, row + n_vocab);
        double began = mullama::thread_seconds();
        const llama_token expected = common_sampler_sample(upstream, ctx, 0);
        const auto & from = *common_sampler_get_candidates(upstream, false);
        if (from.selected < 0 || from.data[from.selected].logit == -INFINITY) break;  // none is left: ours says so
        common_sampler_accept(upstream, expected, true);
        totals.upstream += mullama::thread_seconds() - began;

        mullama::Choice choice;
        began = mullama::thread_seconds();
        double seconds = seed % 2 == 0 ? 1 : 1e-5 * double(random() % 16);
        for (int turn = 1; !ours.choose(copy.data(), 0, {}, seconds, {}, choice); ++turn) {
            seconds = 2 * seconds + 1e-6;
            ++totals.turns;
            if (turn > 100) return false;
        }
        totals.ours += mullama::thread_seconds() - began;
        ++totals.tokens;
        same = choice.token == expected && std::equal(copy.begin(), copy.end(), row);
        if (!same) std::printf("! %s, seed %u, token %d: %d, and upstream %d\n", one.name.c_str(), seed, i, choice.token, expected);
        if (llama_vocab_is_eog(vocab, expected)) break;
    }
    common_sampler_free(upstream);
    return same;
}

}  // namespace

int main(int, char ** arguments) {
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_model * model = llama_model_load_from_file(arguments[1], llama_model_default_params());
    if (model == nullptr) return 1;
    vocab = llama_model_get_vocab(model);
    llama_context_params params = llama_context_default_params();
    params.n_ctx = 64;
    params.n_threads = params.n_threads_batch = 1;
    llama_context * ctx = llama_init_from_model(model, params);
    llama_token first = 0;
    if (ctx == nullptr || llama_decode(ctx, llama_batch_get_one(&first, 1)) != 0) return 1;
    for (const Case & one : cases()) {
        Totals totals;
        bool same = true;
        for (uint32_t seed = 1; same && seed <= 6; ++seed) same = compare(model, ctx, one, seed, totals);
        const double n = std::max(1, totals.tokens) / 1e6;
        std::printf("%s\t%d\t%d\t%.1f\t%.1f\n", one.name.c_str(), totals.tokens, totals.turns, totals.upstream / n, totals.ours / n);
    }
    llama_free(ctx);
    llama_model_free(model);
}
