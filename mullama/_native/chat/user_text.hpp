// What users write into a chat, marked where it could be taken for a control token, so that none comes of it.
//
// A template makes one text of what it writes itself and of what users wrote, and in that text the names of control tokens
// are the tokens. So a mark, a character that nobody else uses, is put into users' strings before the template sees them:
// behind the first character of a name, which therefore is none any more, and before a string that could be the end of
// one. After the text was split at the control tokens that are left, the marks are taken out again.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "model/special_tokens.hpp"

struct common_chat_templates_inputs;

namespace mullama {

class UserText {
  public:
    // names: behind the beginning of each name, whole or cut off by the end of the string.
    // ends: also before a string that could be the end of a name, or its middle, such as "user".
    // starts: also on both sides of whatever a name could begin with, so that no template can put one together of the rest.
    enum class Reach { names, ends, starts };

    // The template's text, so that the marks do not occur in it.
    UserText(const SpecialTokens & specials, const common_chat_templates_inputs & inputs, const std::string & source);

    // Whether there was anything to mark.
    bool mark(common_chat_templates_inputs & inputs, Reach reach) const;

    // A rendered text without its marks.
    std::string plain(std::string_view text) const;

    // The pieces of it between the marks.
    std::vector<std::string> pieces(std::string_view text) const;

    const std::string & guard() const { return behind_; }  // see SpecialTokens::split

  private:
    struct Place { size_t at; const std::string * mark; };

    bool begins_name(std::string_view source) const;
    bool ends_name(std::string_view text) const;
    std::vector<Place> places(std::string_view text, Reach reach) const;
    bool mark_text(std::string & text, Reach reach) const;
    bool mark_json(std::string & json, Reach reach) const;
    size_t mark_at(std::string_view text, size_t at) const;

    const SpecialTokens & specials_;
    std::string behind_, before_;  // the marks
    std::string behind_escaped_, before_escaped_;
    const bool opens_;  // the template may write a part of a name just before what users wrote
};

}  // namespace mullama
