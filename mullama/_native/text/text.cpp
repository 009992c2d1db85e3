// How bytes become text; see text.hpp for the rules.
#include "text/text.hpp"

#include <algorithm>

namespace mullama {

namespace {
const char replacement[] = "\xEF\xBF\xBD";  // U+FFFD
}

size_t Text::bound(size_t piece, const std::vector<std::string> & stops) {
    size_t longest = 0;
    for (const auto & stop : stops) longest = std::max(longest, stop.size());
    return 3 * (piece + 3) + longest;  // every byte may be invalid and become three
}

// Table 3-7 of the Unicode standard: the first byte tells how many follow and what the second may be.
void Text::decode(unsigned char byte) {
    if (missing_ > 0) {
        if (byte >= low_ && byte <= high_) {
            open_ += char(byte);
            low_ = 0x80;
            high_ = 0xBF;
            if (--missing_ == 0) {
                held_ += open_;
                open_.clear();
            }
            return;
        }
        held_ += replacement;
        open_.clear();
        missing_ = 0;
    }
    low_ = 0x80;
    high_ = 0xBF;
    if (byte < 0x80) {
        held_ += char(byte);
        return;
    }
    if (byte >= 0xC2 && byte <= 0xDF) {
        missing_ = 1;
    } else if (byte >= 0xE0 && byte <= 0xEF) {
        missing_ = 2;
        if (byte == 0xE0) low_ = 0xA0;
        if (byte == 0xED) high_ = 0x9F;
    } else if (byte >= 0xF0 && byte <= 0xF4) {
        missing_ = 3;
        if (byte == 0xF0) low_ = 0x90;
        if (byte == 0xF4) high_ = 0x8F;
    } else {
        held_ += replacement;
        return;
    }
    open_.assign(1, char(byte));
}

// The stop string that ends first in held_, looking only at ends beyond `from`; held_ is cut where it begins.
int Text::match(size_t from) {
    for (size_t end = from + 1; end <= held_.size(); ++end) {
        int found = -1;
        for (size_t i = 0; i < stops_.size(); ++i) {
            const auto & stop = stops_[i];
            if (stop.size() <= end && held_.compare(end - stop.size(), stop.size(), stop) == 0 &&
                (found < 0 || stop.size() > stops_[found].size())) {
                found = int(i);
            }
        }
        if (found >= 0) {
            held_.resize(end - stops_[found].size());
            return found;
        }
    }
    return -1;
}

int Text::decide(size_t from, std::string & out) {
    const int found = stops_.empty() ? -1 : match(from);
    size_t keep = 0;
    if (found >= 0) {
        open_.clear();  // the beginning of a character behind the stop string
        missing_ = 0;
    } else {
        for (const auto & stop : stops_) {
            size_t n = std::min(stop.size() - 1, held_.size());
            while (n > keep && held_.compare(held_.size() - n, n, stop, 0, n) != 0) --n;
            keep = std::max(keep, n);
        }
    }
    out.append(held_, 0, held_.size() - keep);
    held_.erase(0, held_.size() - keep);
    return found;
}

int Text::feed(const char * bytes, size_t n, std::string & out) {
    const size_t from = held_.size();
    for (size_t i = 0; i < n; ++i) decode((unsigned char) bytes[i]);
    return decide(from, out);
}

int Text::finish(std::string & out) {
    const size_t from = held_.size();
    if (missing_ > 0) held_ += replacement;
    missing_ = 0;
    open_.clear();
    const int found = decide(from, out);
    out += held_;
    held_.clear();
    return found;
}

}  // namespace mullama
