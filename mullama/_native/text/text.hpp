// From the bytes of tokens to text: whole UTF-8 characters, and nothing of a stop string. Knows no model and does no I/O.
//
// Bytes that may still become a character, and text that may still become a stop string, are held back until they are
// decided. Invalid bytes become U+FFFD, one for each maximal subpart (Unicode 15, section 3.9, as Python's decoder does).
// The stop string whose end comes first wins, and of two that end together the longer one: so the outcome depends on
// the bytes alone, not on how they were split over tokens.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace mullama {

class Text {
  public:
    explicit Text(std::vector<std::string> stops) : stops_(std::move(stops)) {}

    // Take the bytes of one token; append what is decided to `out`. Returns the index of the stop string that was
    // completed, or -1. After a match nothing more may be fed.
    int feed(const char * bytes, size_t n, std::string & out);

    // Take the end: what was held back is decided now. Returns as feed does.
    int finish(std::string & out);

    // Whether anything is held back.
    bool holds() const { return missing_ > 0 || !held_.empty(); }

    // The most text, in bytes, that one token of at most `piece` bytes can complete.
    static size_t bound(size_t piece, const std::vector<std::string> & stops);

  private:
    void decode(unsigned char byte);
    int match(size_t from);
    int decide(size_t from, std::string & out);

    std::vector<std::string> stops_;
    std::string open_;      // the beginning of a character, at most three bytes
    int missing_ = 0;       // how many bytes that character still needs
    unsigned char low_ = 0x80, high_ = 0xBF;  // what its next byte may be
    std::string held_;      // whole characters that may begin a stop string
};

}  // namespace mullama
