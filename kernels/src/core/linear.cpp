// sx_matrix_* and sx_linear: one product at a time.
#include <memory>
#include <new>

#include "core/args.h"
#include "core/context.h"
#include "core/matrix.h"

struct sx_matrix {
    sx::Matrix view;
    sx::Memory memory;
};

namespace {

constexpr uint32_t kMaxDimension = 1u << 28;

sx_status check(const sx_pack_args &args) {
    if (!args.data) return sx::fail(SX_EINVAL, "data: expected the rows, got NULL");
    const sx::Format *from = sx::find_format(args.src_type), *to = sx::find_format(args.type);
    if (!from || !to)
        return sx::fail(SX_EINVAL, "types: expected those that sx_format_describe knows, got %d to be held as %d",
                        args.src_type, args.type);
    if (args.rows < 1 || args.cols < 1 || args.rows > kMaxDimension || args.cols > kMaxDimension)
        return sx::fail(SX_EINVAL, "shape: expected 1 to %u, got %u x %u", kMaxDimension, args.rows, args.cols);
    if (to->step == 0) return sx::fail(SX_EUNSUPPORTED, "type: %s is read only, to be held in another", to->name);
    if (from != to && !to->quantise)
        return sx::fail(SX_EUNSUPPORTED, "type: %s holds blocks of its own only, got %s", to->name, from->name);
    const uint32_t step = from->block > to->block ? from->block : to->block;
    if (args.cols % step != 0)
        return sx::fail(SX_EINVAL, "cols: expected a multiple of %u for %s held as %s, got %u", step, from->name,
                        to->name, args.cols);
    return SX_OK;
}

}  // namespace

sx_status sx_matrix_pack(sx_context *context, const sx_pack_args *given, sx_matrix **out) {
    sx_pack_args args;
    if (!context || !sx::take_args(given, &args) || !out)
        return sx::fail(SX_EINVAL, "sx_matrix_pack: arguments are missing");
    const sx_status status = check(args);
    if (status != SX_OK) return status;
    std::unique_ptr<sx_matrix> matrix(new (std::nothrow) sx_matrix);
    if (!matrix) return sx::fail(SX_ENOMEM, "no memory for a matrix");
    matrix->view.type = args.type;
    matrix->view.rows = args.rows;
    matrix->view.cols = args.cols;
    matrix->view.tile_stride = sx::tile_bytes(args.type, args.cols);
    const uint32_t tiles = matrix->view.n_tiles();
    if (!matrix->memory.allocate(sx::cut_by_node(*context->team, {0, tiles}, &matrix->view)))
        return sx::fail(SX_ENOMEM, "no memory for %u tiles of %zu bytes", tiles, matrix->view.tile_stride);
    matrix->view.tiles = matrix->memory.data();
    context->unbound += sx::bind_parts(*context->team, matrix->view);
    const sx_status packed =
        sx::pack_matrix(*context->team, {args.src_type, args.data, false}, {0, tiles}, &matrix->view);
    if (packed == SX_OK) *out = matrix.release();
    return packed;
}

void sx_matrix_free(sx_matrix *matrix) { delete matrix; }

sx_status sx_linear(sx_context *context, const sx_matrix *w, const float *x, uint32_t m, const float *bias, float *y) {
    if (!context || !w || (m != 0 && (!x || !y)))
        return sx::fail(SX_EINVAL, "sx_linear: a context, a matrix, x and y were expected");
    if (m == 0) return SX_OK;
    const uint32_t n = context->team->size();
    const bool quantised = sx::is_quantised(w->view.type);
    sx::ActivationBuffer act;
    sx::Memory scratch;
    if ((quantised && !act.allocate(m, w->view.cols)) || !scratch.allocate(n * sx::kProductScratch * sizeof(float)))
        return sx::fail(SX_ENOMEM, "no memory for %u rows of %u activations", m, w->view.cols);
    const sx::Part part{&w->view, nullptr, sx::Then::store, bias, y, w->view.rows};
    const sx::Product product{context->ops, context->nrc, &part, 1, act.view(x, w->view.cols), m};
    context->team->run([&](uint32_t thread) {
        if (quantised) act.quantise(*context->ops, x, w->view.cols, sx::share_of(m, thread, n));
        context->team->barrier();
        sx::multiply(product, thread, n, scratch.as<float>() + thread * sx::kProductScratch);
    });
    return SX_OK;
}
