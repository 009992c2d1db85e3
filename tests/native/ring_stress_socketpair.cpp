// The same as ring_stress.cpp with the notifier of systems that have no eventfd.
#define MULLAMA_SOCKETPAIR

#include "ring_stress.cpp"
