// Where a model's memory is meant to lie, for whoever wants to check it.
#include "core/status.h"
#include "model/model.h"

namespace sx {
namespace {

class Writer {
  public:
    Writer(const sx_model *m, sx_region *out, uint32_t step, uint32_t capacity)
        : nodes_(m->context->team->nodes()), out_(reinterpret_cast<uint8_t *>(out)), step_(step), capacity_(capacity) {}

    void matrix(const Matrix &w) {
        for (uint32_t k = 0; w.rows != 0 && k < w.parts.count; k++)
            add(w.tile_at(w.parts.first[k]), part_bytes(w, k), k, 0);
    }

    void kv(const KvCache &cache) {
        for (uint32_t layer = 0; layer < cache.shape().n_layers; layer++)
            for (uint32_t k = 0; k < nodes_.count; k++) {
                const KvCache::Range mine = cache.part(layer, k, nodes_.count);
                add(mine.data, mine.bytes, k, 1);
            }
    }

    uint32_t n() const { return n_; }

  private:
    void add(const void *address, size_t bytes, uint32_t k, int32_t kind) {
        if (bytes == 0) return;
        const sx_region region{address, bytes, nodes_.count > 1 ? nodes_.id[k] : -1, kind};
        if (n_ < capacity_) *reinterpret_cast<sx_region *>(out_ + static_cast<size_t>(n_) * step_) = region;
        n_++;
    }

    const NodeSet &nodes_;
    uint8_t *out_;
    const uint32_t step_, capacity_;
    uint32_t n_ = 0;
};

}  // namespace
}  // namespace sx

sx_status sx_model_regions(const sx_model *model, sx_region *out, uint32_t region_size, uint32_t capacity,
                           uint32_t *n) {
    if (!model || !n || (capacity != 0 && !out)) return sx::fail(SX_EINVAL, "sx_model_regions: arguments are missing");
    if (region_size < sizeof(sx_region))
        return sx::fail(SX_EINVAL, "region_size: expected at least %zu, got %u", sizeof(sx_region), region_size);
    sx::Writer writer(model, out, region_size, capacity);
    for (uint32_t i = 0; i < model->shape.n_layers; i++) {
        const sx::Layer &l = model->layers[i];
        const sx::Matrix *const own[] = {&l.q, &l.k, &l.v, &l.o, &l.gate, &l.down};
        for (const sx::Matrix *w : own) writer.matrix(*w);
        if (l.up_data.data()) writer.matrix(l.up);  // otherwise it lies beside gate
    }
    writer.matrix(model->embedding);
    writer.matrix(model->output);
    writer.kv(model->kv);
    *n = writer.n();
    return SX_OK;
}
