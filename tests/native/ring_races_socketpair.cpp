// The same as ring_races.cpp with the notifier of systems that have no eventfd.
#define MULLAMA_SOCKETPAIR

#include "ring_races.cpp"
