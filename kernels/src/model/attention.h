// Attention of a batch over the paged KV cache, in pieces of 256 tokens of context that are always merged in order: a
// row's result depends neither on the batch nor on how the work is split over threads.
#pragma once

#include <stdint.h>

#include <atomic>

#include "model/model.h"

namespace sx {

// For the layers of one window.
struct AttentionPlan {
    uint32_t window = 0, kind = 0;  // kind: its number in the model
    uint32_t n_tiles = 0, n_items = 0;
    bool any_split = false;
};

// One thread plans for all: which query rows go together, and whether context is split to keep all threads busy.
AttentionPlan plan_attention(sx_model *model, const sx_forward_args &args, uint32_t kind);

// Runs items until none is left; `next` is shared by the threads and starts at 0.
void attend_items(sx_model *model, const sx_forward_args &args, const AttentionPlan &plan, uint32_t layer,
                  std::atomic<uint32_t> *next, uint32_t thread);

// After a barrier: puts the pieces of split tiles together. This thread's share.
void merge_pieces(sx_model *model, const AttentionPlan &plan, uint32_t thread);

}  // namespace sx
