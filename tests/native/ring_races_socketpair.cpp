// The same as ring_races.cpp with the doorbell of systems that have no eventfd.
#define MULLAMA_SOCKETPAIR

#include "ring_races.cpp"
