// Making a chat's prompt; see prompt.hpp.
//
// Where users wrote something that could be a part of a control token's name, the template renders it again with all of that
// marked. If that brings the same control tokens, they all are the template's own, and the prompt stays what it was. If not,
// the least is marked that brings the same, because a template may look for what is marked, such as </think> or "string".
#include "chat/prompt.hpp"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "model/model.hpp"

// llama.cpp's
#include <chat.h>

namespace mullama {

Prompt::Prompt(const llama_model * model, const SpecialTokens & specials, const common_chat_templates * templates,
               const common_chat_templates_inputs & inputs, std::string rendered)
    : model_(model), specials_(specials), templates_(templates), text_(std::move(rendered)) {
    auto given = inputs;
    given.tool_choice = COMMON_CHAT_TOOL_CHOICE_NONE;  // no grammars: only the prompt is wanted
    given.grammar.clear();
    if (auto probe = given; !std::exchange(probe.json_schema, {}).empty()) {
        if (common_chat_templates_apply(templates, probe).prompt == text_) given = std::move(probe);  // it does not show it
    }
    users_.emplace(specials, given, common_chat_templates_source(templates) + common_chat_templates_source(templates, "tool_use"));
    auto probe = given;
    if (!users_->mark(probe, UserText::Reach::starts)) return;
    using Reach = UserText::Reach;
    const auto tried = [&](Reach reach) -> std::optional<std::string> {
        try {
            return render(given, reach);
        } catch (const std::exception &) {
            return std::nullopt;
        }
    };
    const auto most = tried(Reach::starts);
    const auto safe = most ? *most : render(given, Reach::ends);  // perhaps the template needs some of what was marked
    if (same(text_, safe)) return;
    const auto less = [&] {
        for (const auto reach : {Reach::names, Reach::ends}) {
            if (auto some = tried(reach); some && same(*some, safe)) return *some;
        }
        return safe;
    };
    marked_ = less();
    text_ = users_->plain(marked_);
}

std::string Prompt::render(common_chat_templates_inputs inputs, UserText::Reach reach) const {
    users_->mark(inputs, reach);
    return common_chat_templates_apply(templates_, inputs).prompt;
}

// Whether two renderings have the same control tokens: at the same places, if they also have the same text.
bool Prompt::same(const std::string & one, const std::string & other) const {
    const auto of = [this](const std::string & text, bool with_places) {
        std::vector<std::pair<int32_t, size_t>> controls;
        size_t done = 0, place = 0;
        for (const auto & part : specials_.split(text, users_->guard())) {
            if (part.token < 0 || !specials_.is_control(part.token)) continue;
            if (with_places) place += users_->plain(std::string_view(text).substr(done, part.begin - done)).size();
            controls.emplace_back(part.token, place);
            done = part.begin;
        }
        return controls;
    };
    const bool same_text = users_->plain(one) == users_->plain(other);
    return of(one, same_text) == of(other, same_text);
}

std::vector<int32_t> Prompt::tokens(const StopSignal & stop) const {
    if (marked_.empty()) return tokenize(model_, text_, true, true, stop);
    const llama_vocab * vocab = llama_model_get_vocab(model_);
    const auto ends = tokenize(model_, {}, true, true);
    const bool begins = llama_vocab_get_add_bos(vocab) || llama_vocab_type(vocab) == LLAMA_VOCAB_TYPE_WPM;
    const auto middle = ends.begin() + std::min<std::ptrdiff_t>(begins ? 1 : 0, ends.end() - ends.begin());
    std::vector<int32_t> tokens(ends.begin(), middle);
    for (const auto & part : specials_.split(marked_, users_->guard())) {
        if (part.token >= 0) {
            tokens.push_back(part.token);
        } else {
            const auto some = plain_tokens(std::string_view(marked_).substr(part.begin, part.end - part.begin), stop);
            tokens.insert(tokens.end(), some.begin(), some.end());
        }
    }
    tokens.insert(tokens.end(), middle, ends.end());
    return tokens;
}

// Of text between special tokens. Some vocabularies make control tokens of plain text, too: where they put them together of
// smaller ones, and where llama.cpp has them as user-defined tokens, so that it shows them.
std::vector<int32_t> Prompt::plain_tokens(std::string_view marked, const StopSignal & stop) const {
    const llama_vocab * vocab = llama_model_get_vocab(model_);
    const auto forged = [this, vocab](int32_t token) {
        return specials_.is_control(token) && (llama_vocab_get_attr(vocab, token) & LLAMA_TOKEN_ATTR_UNKNOWN) == 0;
    };
    auto tokens = tokenize(model_, users_->plain(marked), false, false, stop);
    if (std::none_of(tokens.begin(), tokens.end(), forged)) return tokens;
    tokens.clear();
    for (const auto & piece : users_->pieces(marked)) {
        const auto some = tokenize(model_, piece, false, false, stop);
        tokens.insert(tokens.end(), some.begin(), some.end());
    }
    if (std::any_of(tokens.begin(), tokens.end(), forged)) {
        throw std::runtime_error("the model's vocabulary makes control tokens of plain text");
    }
    return tokens;
}

}  // namespace mullama
