// A unit that costs almost nothing: OpenAI API over HTTP/1.1, tokens at the pace that the prompt orders (wire.h), each
// an event of about 270 bytes with token_ids, as vLLM's server frames them. Usage: fake_unit PORT; prints READY.
// One thread. It answers what a router or the daemon's warm-up asks of a unit, and no more.
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <queue>
#include <vector>

#include "wire.h"

namespace {

using std::string;
using wire::now_us;

constexpr char kModels[] =
    R"({"object":"list","data":[{"id":"fake-model","object":"model","created":1763600000,"owned_by":"vllm",)"
    R"("root":"fake-model","parent":null,"max_model_len":32768,"permission":[]}]})";
constexpr char kMetrics[] =
    "# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{model_name=\"fake-model\"} 1.0\n"
    "# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting{model_name=\"fake-model\"} 0.0\n"
    "# TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc{model_name=\"fake-model\"} 0.1\n";
constexpr char kWhole[] =
    R"({"id":"cmpl-0","object":"chat.completion","created":1763600000,"model":"fake-model","choices":[{"index":0,)"
    R"("text":"ok","token_ids":[7],"message":{"role":"assistant","content":"ok"},"logprobs":null,)"
    R"("finish_reason":"length"}],"usage":{"prompt_tokens":9,"completion_tokens":1,"total_tokens":10}})";
constexpr char kStreamHead[] =
    "HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    "transfer-encoding: chunked\r\n\r\n";
constexpr char kTokenDigits[] = "KKKKKK";
constexpr int kStepsAtOnce = 2048;  // tokens sent before the sockets are looked at again

string chunked(const string &text) {
    char size[20];
    snprintf(size, sizeof size, "%zx\r\n", text.size());
    return size + text + "\r\n";
}

// The order in a request's body; one token where there is none, as in a warm-up.
struct Order {
    int stream = 0, tokens = 1;
    double rate = 1000;

    explicit Order(const string &body) {
        const size_t at = body.find("@S");
        if (at != string::npos) sscanf(body.c_str() + at, wire::kOrder, &stream, &tokens, &rate);
    }
};

// Events of one answer. The event of a token is made once; each token overwrites its digits.
class Events {
  public:
    Events(const Order &order, bool chat) : tokens_(order.tokens), chat_(chat) {
        char id[48];
        snprintf(id, sizeof id, "%032llx", 0x9e3779b97f4a7c15ull * static_cast<unsigned long long>(order.stream + 1));
        head_ = string("data: {\"id\":\"") + (chat ? "chatcmpl-" : "cmpl-") + id + "\",\"object\":\"" +
                (chat ? "chat.completion.chunk" : "text_completion") +
                "\",\"created\":1763600000,\"model\":\"fake-model\",\"choices\":[{\"index\":0,";
        string mark = wire::kMark;
        wire::put_number(&mark[1], 6, static_cast<uint64_t>(order.stream));
        event_ = chunked(choice(mark, "null", string("[") + kTokenDigits + "]"));
        mark_at_ = event_.find(mark);
        token_at_ = event_.find(kTokenDigits);
    }

    bool ended() const { return made_ == tokens_; }

    string first() const {
        const string role = head_ + "\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}]}\n\n";
        return kStreamHead + (chat_ ? chunked(role) : "");
    }

    const string &next() {
        wire::put_number(&event_[mark_at_ + wire::kSequenceAt], 6, static_cast<uint64_t>(made_));
        wire::put_number(&event_[token_at_], 6, 100000 + static_cast<uint64_t>(made_) * 7919 % 28000);
        wire::put_number(&event_[mark_at_ + wire::kTimeAt], 16, now_us());
        made_++;
        return event_;
    }

    string last() const {
        return chunked(choice("", "\"length\"", "null")) + chunked("data: [DONE]\n\n") + "0\r\n\r\n";
    }

  private:
    string choice(const string &text, const char *finish, const string &ids) const {
        const string content = chat_ ? "\"delta\":{\"content\":\"" + text + "\"}" : "\"text\":\"" + text + "\"";
        return head_ + content + ",\"logprobs\":null,\"finish_reason\":" + finish + ",\"token_ids\":" + ids + "}]}\n\n";
    }

    int tokens_, made_ = 0;
    bool chat_;
    string head_, event_;
    size_t mark_at_ = 0, token_at_ = 0;
};

struct Request {
    string method, path, body;
};

struct Connection {
    int socket = -1;
    uint64_t answer = 0;  // which stream it carries; entries of the queue with another number are stale
    string in, out;
    std::unique_ptr<Events> events;
    bool watched_for_room = false;
    double due = 0, period = 0;

    // The next whole request, taken out of what has come; false while there is none.
    bool take(Request *request) {
        const size_t head_end = in.find("\r\n\r\n");
        if (head_end == string::npos) return false;
        string head = in.substr(0, head_end + 2);
        const size_t first = head.find(' '), second = head.find(' ', first + 1);
        request->method = head.substr(0, first);
        request->path = head.substr(first + 1, std::min(head.find('?'), second) - first - 1);
        std::transform(head.begin(), head.end(), head.begin(), [](unsigned char c) { return tolower(c); });
        return take_body(head, head_end + 4, &request->body);
    }

  private:
    bool take_body(const string &head, size_t begin, string *body) {
        size_t end = begin, next = begin;
        if (head.find("\r\ntransfer-encoding: chunked") != string::npos) {
            end = in.find("\r\n0\r\n\r\n", begin - 2);
            next = end + 7;
        } else if (const size_t length = head.find("\r\ncontent-length:"); length != string::npos) {
            end = next = begin + strtoul(head.c_str() + length + 17, nullptr, 10);
        }
        if (end == string::npos || in.size() < next) return false;
        *body = in.substr(begin, end - begin);
        in.erase(0, next);
        return true;
    }
};

struct Due {
    double at;
    int socket;
    uint64_t answer;
    bool operator<(const Due &other) const { return at > other.at; }
};

class Unit {
  public:
    explicit Unit(int port) : connections_(wire::kMostSockets), poll_(epoll_create1(0)) {
        listener_ = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        const int on = 1;
        setsockopt(listener_, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
        const sockaddr_in address = wire::loopback(port);
        if (bind(listener_, reinterpret_cast<const sockaddr *>(&address), sizeof address) || listen(listener_, 4096)) {
            perror("fake_unit");
            exit(1);
        }
        wire::watch(poll_, EPOLL_CTL_ADD, listener_, EPOLLIN);
    }

    [[noreturn]] void run() {
        std::vector<epoll_event> ready(1024);
        for (;;) {
            const timespec wait = until_due();
            const int count = epoll_pwait2(poll_, ready.data(), static_cast<int>(ready.size()), &wait, nullptr);
            for (int i = 0; i < count; i++) handle(ready[static_cast<size_t>(i)]);
            send_due();
        }
    }

  private:
    timespec until_due() const {
        if (due_.empty()) return {1, 0};
        const double us = std::max(0.0, due_.top().at - static_cast<double>(now_us()));
        return {static_cast<time_t>(us / 1e6), static_cast<long>(us) % 1000000 * 1000};
    }

    void handle(const epoll_event &event) {
        if (event.data.fd == listener_) return accept_all();
        Connection *connection = connections_[static_cast<size_t>(event.data.fd)].get();
        if (connection && event.events & EPOLLOUT) flush(connection);
        connection = connections_[static_cast<size_t>(event.data.fd)].get();
        if (connection && event.events & (EPOLLIN | EPOLLHUP | EPOLLERR)) read_all(connection);
    }

    void accept_all() {
        for (int got; (got = accept4(listener_, nullptr, nullptr, SOCK_NONBLOCK)) >= 0;) {
            wire::no_delay(got);
            auto connection = std::make_unique<Connection>();
            connection->socket = got;
            connections_[static_cast<size_t>(got)] = std::move(connection);
            wire::watch(poll_, EPOLL_CTL_ADD, got, EPOLLIN);
        }
    }

    void drop(Connection *connection) {
        const int socket = connection->socket;
        connections_[static_cast<size_t>(socket)].reset();
        close(socket);
    }

    // What the socket does not take waits in `out`; false when the peer has gone, and the connection with it.
    bool send_text(Connection *connection, const string &text) {
        connection->out += text;
        return flush(connection);
    }

    bool flush(Connection *connection) {
        const ssize_t sent = send(connection->socket, connection->out.data(), connection->out.size(), MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN) return drop(connection), false;
        if (sent > 0) connection->out.erase(0, static_cast<size_t>(sent));
        const bool blocked = !connection->out.empty();
        if (blocked != connection->watched_for_room)
            wire::watch(poll_, EPOLL_CTL_MOD, connection->socket, EPOLLIN | (blocked ? EPOLLOUT : 0u));
        connection->watched_for_room = blocked;
        return true;
    }

    void read_all(Connection *connection) {
        char buffer[65536];
        const ssize_t got = recv(connection->socket, buffer, sizeof buffer, 0);
        if (got == 0 || (got < 0 && errno != EAGAIN)) return drop(connection);
        if (got > 0) connection->in.append(buffer, static_cast<size_t>(got));
        for (Request request; !connection->events && connection->take(&request);)
            if (!answer(connection, request)) return;
    }

    bool answer(Connection *connection, const Request &request) {
        const string &path = request.path;
        if (request.method == "POST" && path.find("/completions") != string::npos) return generate(connection, request);
        if (path == "/health" || path == "/ping") return whole(connection, 200, "text/plain", "");
        if (path == "/v1/models") return whole(connection, 200, "application/json", kModels);
        if (path == "/metrics") return whole(connection, 200, "text/plain; version=0.0.4", kMetrics);
        if (path == "/version") return whole(connection, 200, "application/json", R"({"version":"0.20.0"})");
        return whole(connection, 404, "application/json", R"({"detail":"Not Found"})");
    }

    bool whole(Connection *connection, int status, const char *type, const string &body) {
        return send_text(connection, "HTTP/1.1 " + std::to_string(status) + (status == 200 ? " OK" : " Not Found") +
                                         "\r\ncontent-type: " + type +
                                         "\r\ncontent-length: " + std::to_string(body.size()) + "\r\n\r\n" + body);
    }

    bool generate(Connection *connection, const Request &request) {
        const bool spaced = request.body.find("\"stream\": true") != string::npos;
        if (!spaced && request.body.find("\"stream\":true") == string::npos)
            return whole(connection, 200, "application/json", kWhole);
        const Order order(request.body);
        connection->events = std::make_unique<Events>(order, request.path.find("chat") != string::npos);
        connection->answer = ++answers_;
        connection->period = 1e6 / order.rate;
        connection->due = static_cast<double>(now_us());
        due_.push({connection->due, connection->socket, connection->answer});
        return send_text(connection, connection->events->first());
    }

    void send_due() {
        const double now = static_cast<double>(now_us());
        for (int left = kStepsAtOnce; left && !due_.empty() && due_.top().at <= now; left--) {
            const Due next = due_.top();
            due_.pop();
            Connection *connection = connections_[static_cast<size_t>(next.socket)].get();
            if (connection && connection->events && connection->answer == next.answer) step(connection);
        }
    }

    void step(Connection *connection) {
        connection->due += connection->period;
        const bool blocked = !connection->out.empty();
        if (!blocked && connection->events->ended()) {
            const string last = connection->events->last();
            connection->events.reset();
            send_text(connection, last);
            return;
        }
        const Due next{connection->due, connection->socket, connection->answer};
        if (blocked || send_text(connection, connection->events->next())) due_.push(next);
    }

    std::vector<std::unique_ptr<Connection>> connections_;
    std::priority_queue<Due> due_;
    uint64_t answers_ = 0;
    int poll_, listener_ = -1;
};

}  // namespace

int main(int argc, char **argv) {
    if (argc != 2) return fprintf(stderr, "usage: fake_unit PORT\n"), 2;
    Unit unit(atoi(argv[1]));
    puts("READY");
    fflush(stdout);
    unit.run();
}
