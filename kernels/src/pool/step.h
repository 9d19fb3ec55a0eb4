// Cut points of the protocol, between any two effects that another process can see. Empty but in VARIANT=test, where
// a test stops or kills the process at the n-th one.
#pragma once

#ifdef SX_TEST_STEPS
namespace sx {
void test_step();
}
#define SX_STEP() ::sx::test_step()
#else
#define SX_STEP() ((void)0)
#endif
