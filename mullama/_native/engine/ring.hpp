// The ring: where the tokens of one stream wait between the engine, which alone writes, and the reader, which alone reads.
//
// Single producer, single consumer, lock-free, of exactly `capacity` records. A record has a fixed size that is settled
// when the ring is made: the largest text that one token can complete (see Text::bound) and, on demand, the candidates
// that it was chosen from. Head and tail are sequentially consistent because both sides go on to look at a flag of the
// other side (Dekker's pattern: the reader's `armed`, the producer's `paused`); anything weaker loses a wake-up.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>

namespace mullama {

struct Candidate {
    int32_t token;
    float   logprob;
};

struct Record {
    int32_t  token;
    float    logprob;   // natural logarithm, of the model's own distribution
    int32_t  finish;    // why this is the last record of its stream (Finish in stream.hpp); 0 where it is not
    uint32_t n_top;     // candidates, the likeliest first; the same number in every record of a ring
    uint32_t n_bytes;   // of text, UTF-8, always whole characters; 0 where the token completed nothing

    Candidate * top() { return reinterpret_cast<Candidate *>(this + 1); }
    const Candidate * top() const { return reinterpret_cast<const Candidate *>(this + 1); }
    char * text() { return reinterpret_cast<char *>(top() + n_top); }
    const char * text() const { return reinterpret_cast<const char *>(top() + n_top); }
    size_t size() const { return sizeof(Record) + n_top * sizeof(Candidate) + n_bytes; }
};

// A record that was copied out of its ring, so that what is made of it needs the ring no more. Does not allocate for a record
// of the ordinary size.
class PoppedRecord {
  public:
    const Record & get() const { return *reinterpret_cast<const Record *>(large_ ? large_.get() : small_); }

    void copy(const Record & record) {
        if (record.size() > sizeof small_) large_.reset(new char[record.size()]);
        std::memcpy(large_ ? large_.get() : small_, &record, record.size());
    }

  private:
    alignas(Record) char small_[256];  // not initialised
    std::unique_ptr<char[]> large_;
};

class Ring {
  public:
    Ring(uint32_t capacity, uint32_t text_bytes, uint32_t n_top = 0)
        : capacity_(capacity),
          text_bytes_(text_bytes),
          stride_(stride(text_bytes, n_top)),
          store_(new char[size_t(capacity) * stride_]) {}

    uint32_t capacity() const { return capacity_; }
    uint32_t text_bytes() const { return text_bytes_; }  // that a record can hold

    // Any thread; exact for the one that calls from its own side.
    uint32_t size() const { return uint32_t(tail_.load() - head_.load()); }

    // Producer: the free record to write next, or null when the ring is full.
    Record * back() { return size() == capacity_ ? nullptr : at(tail_.load(std::memory_order_relaxed)); }
    void push() { tail_.store(tail_.load(std::memory_order_relaxed) + 1); }

    // Consumer: the oldest record, or null when the ring is empty.
    const Record * front() { return size() == 0 ? nullptr : at(head_.load(std::memory_order_relaxed)); }
    void pop() { head_.store(head_.load(std::memory_order_relaxed) + 1); }

  private:
    static uint32_t stride(uint32_t text_bytes, uint32_t n_top) {
        const auto bytes = uint32_t(sizeof(Record) + n_top * sizeof(Candidate)) + text_bytes;
        return (bytes + alignof(Record) - 1) / alignof(Record) * alignof(Record);
    }
    Record * at(uint64_t i) { return reinterpret_cast<Record *>(store_.get() + size_t(i % capacity_) * stride_); }

    const uint32_t capacity_, text_bytes_;
    const uint32_t stride_;
    const std::unique_ptr<char[]> store_;
    alignas(64) std::atomic<uint64_t> head_{0};  // moved by the consumer
    alignas(64) std::atomic<uint64_t> tail_{0};  // moved by the producer
};

}  // namespace mullama
