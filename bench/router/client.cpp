// The load of the router benchmark: STREAMS streams opened over RAMP seconds, each of RATE tokens a second; then a
// window of WINDOW seconds in which nothing arrives and the router's processor time is taken; then PROBE seconds of
// short requests on top, for TTFT under load. Prints a line of JSON.
//   client PORT STREAMS RATE RAMP WINDOW PROBE PIDS MODEL [KEY]      PIDS: of the router, with commas between, or -
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <memory>
#include <sstream>
#include <vector>

#include "wire.h"

namespace {

using std::string;
using std::vector;
using wire::now_us;

constexpr char kPath[] = "/v1/chat/completions";
constexpr uint64_t kSettle = 500000, kPatience = 12000000;  // us
constexpr uint64_t kProbeEvery = 50000;
constexpr int kFirstProbe = 900000, kProbeTokens = 2;
constexpr double kProbeRate = 1000;
constexpr char kEnd[] = "0\r\n\r\n";

struct Options {
    int port = 0, streams = 0;
    double rate = 0, ramp = 0, window = 0, probe = 0;
    vector<int> pids;
    string model, key;
};

// Seconds of processor time of all threads, from schedstat: /proc/PID/stat counts in ticks of 10 ms.
double processor_seconds(const vector<int> &pids) {
    double sum = 0;
    for (const int pid : pids) {
        const string folder = "/proc/" + std::to_string(pid) + "/task";
        DIR *tasks = opendir(folder.c_str());
        if (!tasks) continue;
        while (const dirent *task = readdir(tasks)) {
            if (task->d_name[0] == '.') continue;
            double nanoseconds = 0;
            std::ifstream(folder + "/" + task->d_name + "/schedstat") >> nanoseconds;
            sum += nanoseconds;
        }
        closedir(tasks);
    }
    return sum * 1e-9;
}

double resident_mb(const vector<int> &pids) {
    double kilobytes = 0;
    for (const int pid : pids) {
        std::ifstream status("/proc/" + std::to_string(pid) + "/status");
        for (string line; std::getline(status, line);)
            if (line.rfind("VmRSS:", 0) == 0) kilobytes += atof(line.c_str() + 6);
    }
    return kilobytes / 1024;
}

// Milliseconds at a quantile of microseconds; -1 where there are none.
double quantile(vector<uint32_t> *values, double share) {
    if (values->empty()) return -1;
    const auto at = std::min(values->size() - 1, static_cast<size_t>(share * static_cast<double>(values->size())));
    std::nth_element(values->begin(), values->begin() + static_cast<long>(at), values->end());
    return (*values)[at] / 1000.0;
}

struct Stream {
    int socket = -1, number = 0, tokens = 0, next = 0, status = 0;
    bool probe = false, requested = false, marked_done = false;
    uint64_t opened = 0, first = 0, last = 0;
    string request, rest;  // `rest`: the end of what has come, where a mark or the end may be cut
};

struct Tally {
    long lost = 0, mixed = 0, unfinished = 0, failed = 0, refused = 0, whole = 0, in_window = 0;
    string refusal;
    vector<uint32_t> transit, gap, ramp_ttft, probe_ttft;
};

class Client {
  public:
    explicit Client(Options options)
        : options_(std::move(options)), open_(wire::kMostSockets), poll_(epoll_create1(0)), began_(now_us()) {
        ramped_ = began_ + us(options_.ramp);
        window_ = ramped_ + kSettle;
        window_end_ = window_ + us(options_.window);
        end_ = window_end_ + us(options_.probe);
        next_probe_ = window_end_;
    }

    void run() {
        vector<epoll_event> ready(1024);
        while (!over()) {
            open_due();
            look_at_window();
            const int count = epoll_wait(poll_, ready.data(), static_cast<int>(ready.size()), 1);
            for (int i = 0; i < count; i++) handle(ready[static_cast<size_t>(i)]);
        }
        for (const auto &stream : streams_)
            if (open_[static_cast<size_t>(stream->socket)] == stream.get()) close_stream(stream.get());
    }

    void print();

  private:
    static uint64_t us(double seconds) { return static_cast<uint64_t>(seconds * 1e6); }

    bool over() const {
        const uint64_t now = now_us();
        return seen_ == 2 && now >= end_ && (active_ == 0 || now > end_ + kPatience);
    }

    void open_due() {
        const uint64_t now = now_us();
        while (opened_ < options_.streams && now >= began_ + (ramped_ - began_) * static_cast<uint64_t>(opened_) /
                                                                 static_cast<uint64_t>(options_.streams))
            open_stream(opened_++, false);
        for (; seen_ == 2 && next_probe_ <= now && now + 100000 < end_; next_probe_ += kProbeEvery)
            open_stream(kFirstProbe + probes_++, true);
    }

    void look_at_window() {
        const uint64_t now = now_us();
        if ((seen_ == 0 && now < window_) || (seen_ == 1 && now < window_end_) || seen_ == 2) return;
        router_[seen_] = processor_seconds(options_.pids);
        own_[seen_] = processor_seconds({getpid()});
        at_[seen_] = now_us();
        if (seen_ == 1) resident_ = resident_mb(options_.pids);
        seen_++;
    }

    void open_stream(int number, bool probe) {
        auto stream = std::make_unique<Stream>();
        stream->probe = probe;
        stream->number = number;
        stream->opened = now_us();
        const double rate = probe ? kProbeRate : options_.rate, left = static_cast<double>(end_ - stream->opened) / 1e6;
        stream->tokens = probe ? kProbeTokens : std::max(1, static_cast<int>(rate * left));
        stream->request = request(*stream, rate);
        stream->socket = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        wire::no_delay(stream->socket);
        const sockaddr_in address = wire::loopback(options_.port);
        connect(stream->socket, reinterpret_cast<const sockaddr *>(&address), sizeof address);
        open_[static_cast<size_t>(stream->socket)] = stream.get();
        wire::watch(poll_, EPOLL_CTL_ADD, stream->socket, EPOLLIN | EPOLLOUT);
        active_++;
        streams_.push_back(std::move(stream));
    }

    string request(const Stream &stream, double rate) const {
        char order[64];
        snprintf(order, sizeof order, wire::kOrder, stream.number, stream.tokens, rate);
        const string prompt = order + string(600, 'x');
        const string body = "{\"model\":\"" + options_.model +
                            "\",\"stream\":true,\"max_tokens\":" + std::to_string(stream.tokens) +
                            ",\"messages\":[{\"role\":\"user\",\"content\":\"" + prompt + "\"}]}";
        const string key = options_.key.empty() ? "" : "Authorization: Bearer " + options_.key + "\r\n";
        return string("POST ") + kPath + " HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n" + key +
               "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
    }

    void handle(const epoll_event &event) {
        Stream *stream = open_[static_cast<size_t>(event.data.fd)];
        if (!stream) return;
        if (!stream->requested && event.events & EPOLLOUT) {
            stream->requested = true;
            send(stream->socket, stream->request.data(), stream->request.size(), MSG_NOSIGNAL);
            wire::watch(poll_, EPOLL_CTL_MOD, stream->socket, EPOLLIN);
        }
        if (event.events & (EPOLLIN | EPOLLHUP | EPOLLERR)) read(stream);
    }

    void read(Stream *stream) {
        const size_t before = stream->rest.size();
        memcpy(buffer_, stream->rest.data(), before);
        const ssize_t got = recv(stream->socket, buffer_ + before, sizeof buffer_ - before, 0);
        if (got < 0 && errno == EAGAIN) return;
        if (got <= 0) return close_stream(stream);
        const uint64_t now = now_us();
        const char *end = buffer_ + before + got;
        if (!stream->status) read_status(stream, end);
        const char *rest = read_marks(stream, end, now);
        if (stream->next < stream->tokens && stream->status == 200)
            stream->rest.assign(rest, end);
        else if (ended(stream, end))
            close_stream(stream);
    }

    void read_status(Stream *stream, const char *end) {
        if (end - buffer_ < 12) return;
        stream->status = atoi(buffer_ + 9);
        if (stream->status == 200) return;
        tally_.refused++;
        if (tally_.refusal.empty())
            tally_.refusal = string(static_cast<const char *>(buffer_), std::min<const char *>(end, buffer_ + 600));
    }

    // Counts the marks up to `end`; returns where a mark that is cut there begins.
    const char *read_marks(Stream *stream, const char *end, uint64_t now) {
        const char *at = buffer_;
        while ((at = static_cast<const char *>(memchr(at, '@', static_cast<size_t>(end - at))))) {
            if (end - at < static_cast<long>(wire::kMarkSize)) return at;
            if (at[wire::kSequenceAt - 1] != ':' || at[wire::kTimeAt - 1] != ':') {
                at++;
                continue;
            }
            token(stream, at, now);
            at += wire::kMarkSize;
        }
        return end;
    }

    void token(Stream *stream, const char *mark, uint64_t now) {
        const int sequence = static_cast<int>(wire::get_number(mark + wire::kSequenceAt, 6));
        if (static_cast<int>(wire::get_number(mark + 1, 6)) != stream->number) {
            tally_.mixed++;
        } else {
            tally_.lost += std::abs(sequence - stream->next);
            stream->next = sequence + 1;
        }
        if (!stream->first) {
            stream->first = now;
            (stream->probe ? tally_.probe_ttft : tally_.ramp_ttft)
                .push_back(static_cast<uint32_t>(now - stream->opened));
        }
        if (seen_ == 1 && !stream->probe) {
            tally_.in_window++;
            const uint64_t sent = wire::get_number(mark + wire::kTimeAt, 16);
            tally_.transit.push_back(static_cast<uint32_t>(now > sent ? now - sent : 0));
            if (stream->last) tally_.gap.push_back(static_cast<uint32_t>(now - stream->last));
        }
        stream->last = now;
    }

    // All tokens have come: whether the answer's last bytes have, too. The last bytes are kept for the next look.
    bool ended(Stream *stream, const char *end) {
        constexpr long kTail = 40;
        const string seen(std::max<const char *>(buffer_, end - kTail), end);
        stream->marked_done = stream->marked_done || memmem(buffer_, static_cast<size_t>(end - buffer_), "[DONE]", 6);
        stream->rest = seen;
        std::replace(stream->rest.begin(), stream->rest.end(), '@', '#');  // counted already
        const size_t size = sizeof kEnd - 1;
        return stream->marked_done && seen.size() >= size && seen.compare(seen.size() - size, size, kEnd) == 0;
    }

    void close_stream(Stream *stream) {
        close(stream->socket);
        open_[static_cast<size_t>(stream->socket)] = nullptr;
        active_--;
        const bool whole = stream->marked_done && stream->next == stream->tokens;
        tally_.whole += whole;
        tally_.failed += !whole;
        tally_.unfinished += stream->tokens - std::min(stream->next, stream->tokens);
    }

    const Options options_;
    vector<Stream *> open_;
    vector<std::unique_ptr<Stream>> streams_;
    Tally tally_;
    int poll_, opened_ = 0, probes_ = 0, active_ = 0;
    int seen_ = 0;  // 0: before the window, 1: in it, 2: after it
    uint64_t began_, ramped_, window_, window_end_, end_, next_probe_, at_[2] = {};
    double router_[2] = {}, own_[2] = {}, resident_ = 0;
    char buffer_[1 << 18];
};

void Client::print() {
    const double seconds = static_cast<double>(at_[1] - at_[0]) / 1e6, chunks = static_cast<double>(tally_.in_window);
    const double spent = router_[1] - router_[0];
    std::ostringstream out;
    out.precision(6);
    const auto put = [&](const char *name, double value) { out << '"' << name << "\": " << value << ", "; };
    out << '{';
    put("chunks_per_s", chunks / seconds);
    put("chunks_ordered_per_s", options_.streams * options_.rate);
    put("cpu_us_per_chunk", chunks > 0 ? spent * 1e6 / chunks : -1);
    put("cpu_share", spent / seconds);
    put("client_cpu_share", (own_[1] - own_[0]) / seconds);
    put("transit_p50_ms", quantile(&tally_.transit, .5));
    put("transit_p99_ms", quantile(&tally_.transit, .99));
    put("gap_p99_ms", quantile(&tally_.gap, .99));
    put("ramp_ttft_p50_ms", quantile(&tally_.ramp_ttft, .5));
    put("ramp_ttft_p99_ms", quantile(&tally_.ramp_ttft, .99));
    put("loaded_ttft_p50_ms", quantile(&tally_.probe_ttft, .5));
    put("loaded_ttft_p99_ms", quantile(&tally_.probe_ttft, .99));
    put("rss_mb", resident_);
    put("lost", static_cast<double>(tally_.lost));
    put("mixed", static_cast<double>(tally_.mixed));
    put("unfinished", static_cast<double>(tally_.unfinished));
    put("refused", static_cast<double>(tally_.refused));
    put("failed", static_cast<double>(tally_.failed));
    out << "\"whole\": " << tally_.whole << '}';
    puts(out.str().c_str());
    if (!tally_.refusal.empty()) fprintf(stderr, "first refusal: %s\n", tally_.refusal.c_str());
}

vector<int> numbers(const string &list) {
    vector<int> found;
    std::istringstream parts(list);
    for (string part; std::getline(parts, part, ',');)
        if (part != "-") found.push_back(atoi(part.c_str()));
    return found;
}

}  // namespace

int main(int argc, char **argv) {
    if (argc < 9) return fprintf(stderr, "usage: client PORT STREAMS RATE RAMP WINDOW PROBE PIDS MODEL [KEY]\n"), 2;
    Options options;
    options.port = atoi(argv[1]);
    options.streams = atoi(argv[2]);
    options.rate = atof(argv[3]);
    options.ramp = atof(argv[4]);
    options.window = atof(argv[5]);
    options.probe = atof(argv[6]);
    options.pids = numbers(argv[7]);
    options.model = argv[8];
    options.key = argc > 9 ? argv[9] : "";
    const auto client = std::make_unique<Client>(std::move(options));
    client->run();
    client->print();
}
