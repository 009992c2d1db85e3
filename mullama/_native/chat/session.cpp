// Reading an answer with llama.cpp's parser; see session.hpp.
#include "chat/session.hpp"

#include <utility>

// llama.cpp's
#include <common.h>
#include <sampling.h>

namespace mullama {

Session::Session(common_chat_params applied, const llama_vocab * vocab) : applied_(std::move(applied)), params_(applied_) {
    params_.generation_prompt = common_chat_input_tokenize(vocab, applied_.generation_prompt);
    params_.parser = std::move(applied_.parser);
}

void Session::amend(common_params_sampling & sampling, const llama_vocab * vocab) const {
    if (!applied_.grammar.empty()) sampling.grammar = {COMMON_GRAMMAR_TYPE_TOOL_CALLS, applied_.grammar};
    sampling.grammar_lazy = applied_.grammar_lazy;
    sampling.generation_prompt = applied_.generation_prompt;
    common_sampling_add_preserved_tokens(sampling, vocab, applied_.preserved_tokens);
    common_sampling_add_grammar_triggers(sampling, vocab, applied_.grammar_triggers);
}

const common_chat_msg & Session::feed(const common_chat_input & text) { return read(text, true); }

const common_chat_msg & Session::finish(const common_chat_input & text) { return read(text, false); }

const common_chat_msg & Session::read(const common_chat_input & text, bool partial) {
    answer_.append(text);
    auto message = common_chat_parse(answer_, partial, params_);
    if (!message.empty()) message_ = std::move(message);
    return message_;
}

}  // namespace mullama
