#include "core/matrix.h"

#include <string.h>

#include <memory>
#include <new>

#include "core/status.h"
#include "formats/format.h"

namespace sx {
namespace {

Span intersect(Span share, Place place, uint32_t n) {
    const uint32_t end = place.offset + n;
    const uint32_t first = share.first < place.offset ? place.offset : share.first > end ? end : share.first;
    const uint32_t last = share.last < place.offset ? place.offset : share.last > end ? end : share.last;
    return {first - place.offset, last - place.offset};
}

struct Block {
    Span tiles, rows;  // at most kProductTiles and kProductRows
};

void mul_tiles(const Product &p, const Matrix &w, Span tiles, Span rows, float *out, size_t ld_out) {
    MulArgs args;
    args.w = w.tile_at(tiles.first);
    args.tile_stride = w.tile_stride;
    args.n_tiles = tiles.last - tiles.first;
    args.cols = w.padded_cols();
    args.n_rows = rows.last - rows.first;
    args.nrc = p.nrc;
    const size_t groups = p.act.ldq / kGroup;
    args.act = {p.act.x + rows.first * p.act.ldx,  p.act.ldx,
                p.act.q + rows.first * p.act.ldq,  p.act.ldq,
                p.act.scale + rows.first * groups, p.act.sum + rows.first * groups,
                p.act.total + rows.first * groups};
    args.out = out;
    args.ld_out = ld_out;
    p.ops->products.of[find_format(w.type)->index](&args);
}

bool interleaved(const Matrix &gate, const Matrix &up) {
    const size_t bytes = tile_bytes(gate.type, gate.cols);
    return gate.type == up.type && up.tiles == gate.tiles + bytes && gate.tile_stride == 2 * bytes;
}

// Gate and up tiles side by side in `out`: 16 columns of gate, 16 of up, and so on.
void mul_pairs(const Product &p, const Part &part, Span tiles, Span rows, float *out, size_t ld_out) {
    if (interleaved(*part.weights, *part.up)) {
        Matrix both = *part.weights;
        both.tiles += both.parts.skip_of(tiles.first);
        both.parts = NodeParts();
        both.tile_stride /= 2;
        mul_tiles(p, both, {2 * tiles.first, 2 * tiles.last}, rows, out, ld_out);
        return;
    }
    for (uint32_t t = tiles.first; t < tiles.last; t++, out += 2 * kTileRows) {
        mul_tiles(p, *part.weights, {t, t + 1}, rows, out, ld_out);
        mul_tiles(p, *part.up, {t, t + 1}, rows, out + kTileRows, ld_out);
    }
}

void finish_row(const Product &p, const Part &part, uint32_t column, uint32_t n, const float *result, float *out) {
    if (part.then == Then::silu_mul) {
        for (uint32_t c = 0; c < n; c += kTileRows)
            p.ops->silu_mul(out + c, result + 2 * c, result + 2 * c + kTileRows, n - c < kTileRows ? n - c : kTileRows);
        return;
    }
    if (part.then == Then::store)
        memcpy(out, result, n * sizeof *out);
    else
        p.ops->add(out, result, n);
    if (part.bias) p.ops->add(out, part.bias + column, n);
}

void compute_block(const Product &p, const Part &part, const Block &b, float *scratch) {
    const bool pairs = part.then == Then::silu_mul;
    const size_t ld = static_cast<size_t>(b.tiles.last - b.tiles.first) * kTileRows * (pairs ? 2 : 1);
    if (pairs)
        mul_pairs(p, part, b.tiles, b.rows, scratch, ld);
    else
        mul_tiles(p, *part.weights, b.tiles, b.rows, scratch, ld);
    const uint32_t column = b.tiles.first * kTileRows, end = b.tiles.last * kTileRows;
    const uint32_t n = (end < part.weights->rows ? end : part.weights->rows) - column;
    for (uint32_t row = b.rows.first; row < b.rows.last; row++)
        finish_row(p, part, column, n, scratch + (row - b.rows.first) * ld, part.out + row * part.ld_out + column);
}

void compute_part(const Product &p, const Part &part, Span tiles, float *scratch) {
    const uint32_t step = part.then == Then::silu_mul ? kProductTiles / 2 : kProductTiles;
    for (uint32_t t = tiles.first; t < tiles.last; t += step)
        for (uint32_t row = 0; row < p.n_rows; row += kProductRows) {
            const uint32_t t_end = t + step < tiles.last ? t + step : tiles.last;
            const uint32_t row_end = row + kProductRows < p.n_rows ? row + kProductRows : p.n_rows;
            compute_block(p, part, {{t, t_end}, {row, row_end}}, scratch);
        }
}

}  // namespace

size_t cut_by_node(const Team &team, Place place, Matrix *matrix) {
    const uint32_t nodes = team.nodes().count, per_node = team.size() / nodes;
    NodeParts parts;
    parts.count = nodes;
    size_t end = 0;
    for (uint32_t k = 0; k < nodes; k++) {
        const uint32_t from = share_of(place.total, k * per_node, team.size()).first;
        const uint32_t to = share_of(place.total, (k + 1) * per_node - 1, team.size()).last;
        const Span mine = intersect({from, to}, place, matrix->n_tiles());
        const size_t begin = (end + kBindStep - 1) / kBindStep * kBindStep;
        parts.first[k] = mine.first;
        parts.skip[k] = begin - mine.first * matrix->tile_stride;
        end = begin + (mine.last - mine.first) * matrix->tile_stride;
    }
    matrix->parts = parts;
    return end;
}

size_t part_bytes(const Matrix &matrix, uint32_t k) {
    const uint32_t last = k + 1 < matrix.parts.count ? matrix.parts.first[k + 1] : matrix.n_tiles();
    return (last - matrix.parts.first[k]) * matrix.tile_stride;
}

uint32_t bind_parts(const Team &team, const Matrix &matrix) {
    if (matrix.parts.count < 2) return 0;
    uint32_t refused = 0;
    for (uint32_t k = 0; k < matrix.parts.count; k++)
        refused += !bind_to_node(matrix.tile_at(matrix.parts.first[k]), part_bytes(matrix, k), team.nodes().id[k]);
    return refused;
}

sx_status pack_matrix(Team &team, const Source &source, Place place, Matrix *matrix) {
    const uint32_t columns = round_up(matrix->cols, kTileRows), n = team.size();
    std::unique_ptr<float[]> scratch(new (std::nothrow) float[static_cast<size_t>(columns) * n]);
    if (!scratch) return fail(SX_ENOMEM, "no memory for %u threads to pack rows of %u columns", n, matrix->cols);
    const size_t bytes = tile_bytes(matrix->type, matrix->cols);
    const PackJob job{source.type, matrix->type, matrix->rows, matrix->cols, static_cast<const uint8_t *>(source.data)};
    team.run([&](uint32_t thread) {
        const Span mine = intersect(share_of(place.total, thread, n), place, matrix->n_tiles());
        for (uint32_t t = mine.first; t < mine.last; t++) {
            if (source.packed)
                memcpy(matrix->tile_at(t), job.data + t * bytes, bytes);
            else
                pack_tile(job, t, matrix->tile_at(t), scratch.get() + static_cast<size_t>(thread) * columns);
        }
    });
    return SX_OK;
}

bool ActivationBuffer::allocate(uint32_t max_rows, uint32_t max_cols) {
    const size_t values = static_cast<size_t>(max_rows) * round_up(max_cols, kActColumns);
    const size_t groups = values / kGroup * sizeof(float);
    return q_.allocate(values) && scale_.allocate(groups) && sum_.allocate(groups) && total_.allocate(groups);
}

void ActivationBuffer::quantise(const Ops &ops, const float *x, uint32_t cols, Span rows) {
    const size_t padded = round_up(cols, kActColumns), groups = padded / kGroup;
    for (uint32_t row = rows.first; row < rows.last; row++) {
        const QuantiseArgs args{x + static_cast<size_t>(row) * cols, cols,
                                static_cast<uint32_t>(padded),       q_.as<int8_t>() + row * padded,
                                scale_.as<float>() + row * groups,   sum_.as<int32_t>() + row * groups,
                                total_.as<float>() + row * groups};
        ops.quantise(&args);
    }
}

Activations ActivationBuffer::view(const float *x, uint32_t cols) const {
    return {x,
            cols,
            q_.as<int8_t>(),
            round_up(cols, kActColumns),
            scale_.as<float>(),
            sum_.as<int32_t>(),
            total_.as<float>()};
}

void multiply(const Product &product, uint32_t thread, uint32_t n_threads, float *scratch) {
    uint32_t total = 0;
    for (uint32_t i = 0; i < product.n_parts; i++) total += product.parts[i].weights->n_tiles();
    const Span share = share_of(total, thread, n_threads);
    uint32_t offset = 0;
    for (uint32_t i = 0; i < product.n_parts; i++) {
        const Part &part = product.parts[i];
        const uint32_t n = part.weights->n_tiles();
        compute_part(product, part, intersect(share, {offset, total}, n), scratch);
        offset += n;
    }
}

}  // namespace sx
