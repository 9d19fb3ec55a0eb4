#include "core/context.h"

#include <sched.h>
#include <string.h>

#include <new>
#include <utility>

#include "core/args.h"

namespace {

constexpr uint32_t kMaxThreads = 1024, kMaxSpinUs = 50;

sx_status check(const sx_context_args &args) {
    if (args.n_threads < 1 || args.n_threads > kMaxThreads)
        return sx::fail(SX_EINVAL, "n_threads: expected 1 to %u, got %u", kMaxThreads, args.n_threads);
    if (args.spin_us > kMaxSpinUs)
        return sx::fail(SX_EINVAL, "spin_us: expected at most %u, got %u", kMaxSpinUs, args.spin_us);
    if (args.nrc != 0 && args.nrc != 16 && args.nrc != 32)
        return sx::fail(SX_EINVAL, "nrc: expected 16 or 32 weight rows, or 0 for the default, got %u", args.nrc);
    for (uint32_t i = 0; args.cpus && i < args.n_threads; i++)
        if (args.cpus[i] < 0 || args.cpus[i] >= CPU_SETSIZE)
            return sx::fail(SX_EINVAL, "cpus[%u]: expected 0 to %d, got %d", i, CPU_SETSIZE - 1, args.cpus[i]);
    return SX_OK;
}

}  // namespace

sx_status sx_context_create(const sx_context_args *given, sx_context **out) {
    sx_context_args args;
    if (!sx::take_args(given, &args) || !out) return sx::fail(SX_EINVAL, "sx_context_create: arguments are missing");
    const sx_status status = check(args);
    if (status != SX_OK) return status;
    const sx::Ops *ops = sx::find_ops(args.isa);
    if (!ops) {
        char names[128] = "";
        sx_isa_list(names, sizeof names);
        return sx::fail(SX_EUNSUPPORTED, "isa: expected one of %s, got %s", names, args.isa);
    }
    std::unique_ptr<sx_context> context(new (std::nothrow) sx_context);
    if (!context) return sx::fail(SX_ENOMEM, "no memory for a context");
    context->ops = ops;
    context->nrc = args.nrc != 0 ? args.nrc : ops->default_nrc;
    const sx_status started = sx::Team::create(args.n_threads, args.cpus, args.spin_us, &context->team);
    if (started != SX_OK) return started;
    *out = context.release();
    return SX_OK;
}

void sx_context_destroy(sx_context *context) { delete context; }

sx_status sx_context_describe(const sx_context *context, sx_context_info *info) {
    if (!context || !info) return sx::fail(SX_EINVAL, "sx_context_describe: a context and a struct were expected");
    sx_context_info full;
    memset(&full, 0, sizeof full);
    full.size = info->size;
    full.n_threads = context->team->size();
    full.n_pinned = context->team->pinned();
    full.n_nodes = context->team->nodes().count;
    strncpy(full.isa, context->ops->name, sizeof full.isa - 1);
    full.nrc = context->nrc;
    full.n_unbound = context->unbound.load();
    memcpy(info, &full, info->size < sizeof full ? info->size : sizeof full);
    return SX_OK;
}
