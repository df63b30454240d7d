// What the guest of vm.sh needs and busybox has not.
//
//   guest start PROGRAM ARGS   starts an agent; prints its process identifier and, once it has acknowledged a message,
//                              how many milliseconds of the guest's clock that took
//   guest publish FROM COUNT   messages FROM, FROM + 1, … with QoS 1, as many at a time as an agent takes; COUNT 0:
//                              without end, few at a time, and prints the number of each that was acknowledged
//   guest clock SECONDS        sets the clock, beyond 2038 too; prints the year
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static int fail(const char *what) {
    perror(what);
    exit(1);
}

static void read_all(int fd, unsigned char *to, size_t length) {
    for (ssize_t got; length > 0; to += got, length -= got)
        if ((got = read(fd, to, length)) <= 0) fail("the agent closed the connection");
}

static void write_all(int fd, const void *from, size_t length) {
    if (write(fd, from, length) != (ssize_t)length) fail("write");
}

// A session of MQTT 3.1.1, as soon as somebody listens.
static int connected(void) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(1883), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    unsigned char connack[4];
    int fd;
    while (connect(fd = socket(AF_INET, SOCK_STREAM, 0), (struct sockaddr *)&to, sizeof to) != 0) {
        close(fd);
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    write_all(fd, "\x10\x11\0\4MQTT\4\2\0\0\0\5guest", 19);
    read_all(fd, connack, sizeof connack);
    if (connack[3] != 0) fail("CONNECT was refused");
    return fd;
}

static unsigned identifier(unsigned long n) { return n % 60000 + 1; }

static void publish(int fd, unsigned long n) {
    static const char topic[] = "site/berlin/dev-1/temp";
    unsigned char packet[512] = {0x32};
    int topic_bytes = sizeof topic - 1;
    char note[8 * 15 + 1]; // nothing for a compressor
    for (unsigned i = 0, x = n; i < 15; i++) sprintf(note + 8 * i, "%08x", x = x * 1664525 + 1013904223);
    int bytes = sprintf((char *)packet + 7 + topic_bytes, "{\"ts\":%lld,\"n\":%lu,\"temp\":%.2f,\"note\":\"%s\"}",
                        (long long)time(NULL) * 1000, n, 20 + (n * 7 % 500) / 100.0, note);
    int rest = 2 + topic_bytes + 2 + bytes;
    packet[1] = rest % 128 | 128; // 128 to 16,383 bytes remain
    packet[2] = rest / 128;
    packet[4] = topic_bytes;
    memcpy(packet + 5, topic, topic_bytes);
    packet[5 + topic_bytes] = identifier(n) >> 8;
    packet[6 + topic_bytes] = identifier(n);
    write_all(fd, packet, 3 + rest);
}

static void await_puback(int fd, unsigned long n) {
    unsigned char puback[4];
    read_all(fd, puback, sizeof puback);
    if (puback[0] != 0x40 || (unsigned)(puback[2] << 8 | puback[3]) != identifier(n)) fail("not this message's PUBACK");
}

static void publish_all(unsigned long from, unsigned long count) {
    int fd = connected();
    unsigned long sent = 0, window = count == 0 ? 16 : 256;
    for (unsigned long acknowledged = 0; count == 0 || acknowledged < count; acknowledged++) {
        while (sent < acknowledged + window && (count == 0 || sent < count)) publish(fd, from + sent++);
        await_puback(fd, from + acknowledged);
        if (count != 0) continue;
        printf("acknowledged %lu\n", from + acknowledged);
        fflush(stdout);
    }
}

static void start(char **program) {
    struct timespec began, ended;
    clock_gettime(CLOCK_MONOTONIC, &began);
    pid_t agent = fork();
    if (agent == 0) {
        execv(program[0], program);
        fail(program[0]);
    }
    int fd = connected();
    publish(fd, 1);
    await_puback(fd, 1);
    clock_gettime(CLOCK_MONOTONIC, &ended);
    printf("%d %lld\n", agent,
           (ended.tv_sec - began.tv_sec) * 1000LL + (ended.tv_nsec - began.tv_nsec) / 1000000);
}

static void set_clock(time_t seconds) {
    if (clock_settime(CLOCK_REALTIME, &(struct timespec){.tv_sec = seconds}) != 0) fail("set the clock");
    seconds = time(NULL);
    printf("%d\n", 1900 + gmtime(&seconds)->tm_year);
}

int main(int count, char **args) {
    if (count >= 3 && strcmp(args[1], "start") == 0) start(args + 2);
    else if (count == 4 && strcmp(args[1], "publish") == 0) publish_all(atol(args[2]), atol(args[3]));
    else if (count == 3 && strcmp(args[1], "clock") == 0) set_clock(atoll(args[2]));
    else return 2;
    return 0;
}
