// What the fake unit and the client of the router benchmark agree on, and the sockets of both.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>

#include <string>

namespace wire {

// Text of a token: stream, number in the stream, microsecond at which it was sent. Both ends read the same clock.
constexpr char kMark[] = "@SSSSSS:QQQQQQ:TTTTTTTTTTTTTTTT";
constexpr size_t kMarkSize = sizeof kMark - 1;
constexpr size_t kSequenceAt = 8, kTimeAt = 15;

// In the prompt: stream, tokens to make, tokens a second (more than 0).
constexpr char kOrder[] = "@S%06d N%d R%lf@";

constexpr int kMostSockets = 70000;

inline uint64_t now_us() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<uint64_t>(now.tv_sec) * 1000000 + static_cast<uint64_t>(now.tv_nsec) / 1000;
}

inline sockaddr_in loopback(int port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

inline void no_delay(int socket) {
    const int on = 1;
    setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

inline void watch(int poll, int operation, int socket, uint32_t events) {
    epoll_event event{};
    event.events = events;
    event.data.fd = socket;
    epoll_ctl(poll, operation, socket, &event);
}

// Decimal digits of `value` over `width` characters at `where`.
inline void put_number(char *where, int width, uint64_t value) {
    for (int at = width - 1; at >= 0; at--, value /= 10) where[at] = static_cast<char>('0' + value % 10);
}

inline uint64_t get_number(const char *where, int width) {
    uint64_t value = 0;
    for (int at = 0; at < width; at++) value = value * 10 + static_cast<uint64_t>(where[at] - '0');
    return value;
}

}  // namespace wire
