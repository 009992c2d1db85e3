// The prompt of a chat, as text and as tokens: of the control tokens in it, none comes from what users wrote.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "chat/user_text.hpp"
#include "checks/work_limit.hpp"

struct common_chat_templates;

namespace mullama {

class Prompt {
  public:
    // `rendered` is what the template makes of the inputs. What the users wrote is marked in the text that is tokenised only
    // where `rendered` has other control tokens than the template wrote; everywhere else it is tokenised as it is.
    Prompt(const llama_model * model, const SpecialTokens & specials, const common_chat_templates * templates,
           const common_chat_templates_inputs & inputs, std::string rendered);

    const std::string & text() const { return text_; }
    std::vector<int32_t> tokens(const StopSignal & stop) const;

  private:
    std::string render(common_chat_templates_inputs inputs, UserText::Reach reach) const;
    bool same(const std::string & one, const std::string & other) const;
    std::vector<int32_t> plain_tokens(std::string_view marked, const StopSignal & stop) const;

    const llama_model * const model_;
    const SpecialTokens & specials_;
    const common_chat_templates * const templates_;
    std::optional<UserText> users_;
    std::string text_, marked_;  // the latter where it differs
};

}  // namespace mullama
