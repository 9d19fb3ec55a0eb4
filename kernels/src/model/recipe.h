// What a model's layers do differently from llama's, checked and filled in.
#pragma once

#include "core/status.h"
#include "model/model.h"

namespace sx {

sx_status check_recipe(const sx_model_args &args);

// Copies the arrays of model->shape and puts the defaults where it says zero; false when there is no memory.
bool take_recipe(sx_model *model);

}  // namespace sx
