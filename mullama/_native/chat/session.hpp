// An answer as its parser reads it, of what a template came to: common_chat_session, with a parser or a grammar of ours.
#pragma once

#include <string>

// llama.cpp's
#include <chat.h>

struct common_params_sampling;

namespace mullama {

class Session {
  public:
    Session() = default;
    Session(common_chat_params applied, const llama_vocab * vocab);

    const common_chat_params & applied() const { return applied_; }
    const common_chat_msg & message() const { return message_; }
    const common_peg_arena & parser() const { return params_.parser; }

    // The grammar, what triggers it, and the tokens that the parser reads.
    void amend(common_params_sampling & sampling, const llama_vocab * vocab) const;

    const common_chat_msg & feed(const common_chat_input & text);
    const common_chat_msg & finish(const common_chat_input & text);

  private:
    const common_chat_msg & read(const common_chat_input & text, bool partial);

    common_chat_params applied_;
    common_chat_parser_params params_;
    common_chat_input answer_;
    common_chat_msg message_;
};

}  // namespace mullama
