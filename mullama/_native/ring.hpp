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

struct Record {
    int32_t  token;
    float    logprob;   // natural logarithm, of the model's own distribution
    uint32_t is_final;  // the last record of its stream
    uint32_t n_bytes;   // of text, UTF-8, always whole characters; 0 where the token completed nothing

    char * text() { return reinterpret_cast<char *>(this + 1); }
    const char * text() const { return reinterpret_cast<const char *>(this + 1); }
};

class Ring {
  public:
    Ring(uint32_t capacity, uint32_t text_bytes)
        : capacity_(capacity),
          stride_((sizeof(Record) + text_bytes + alignof(Record) - 1) / alignof(Record) * alignof(Record)),
          store_(new char[size_t(capacity) * stride_]) {}

    uint32_t capacity() const { return capacity_; }

    // Any thread; exact for the one that calls from its own side.
    uint32_t size() const { return uint32_t(tail_.load() - head_.load()); }

    // Producer: the free record to write next, or null when the ring is full.
    Record * back() { return size() == capacity_ ? nullptr : at(tail_.load(std::memory_order_relaxed)); }
    void push() { tail_.store(tail_.load(std::memory_order_relaxed) + 1); }

    // Consumer: the oldest record, or null when the ring is empty.
    const Record * front() { return size() == 0 ? nullptr : at(head_.load(std::memory_order_relaxed)); }
    void pop() { head_.store(head_.load(std::memory_order_relaxed) + 1); }

  private:
    Record * at(uint64_t i) { return reinterpret_cast<Record *>(store_.get() + size_t(i % capacity_) * stride_); }

    const uint32_t capacity_;
    const uint32_t stride_;
    const std::unique_ptr<char[]> store_;
    alignas(64) std::atomic<uint64_t> head_{0};  // moved by the consumer
    alignas(64) std::atomic<uint64_t> tail_{0};  // moved by the producer
};

}  // namespace mullama
