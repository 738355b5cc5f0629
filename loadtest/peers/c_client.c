// A load client in C (epoll(7)) that verifies nothing: what a load client in Python is measured against.
//
//   c-client PORT CONNECTIONS SECONDS SIZE
//
// connects all, asks on all at once, asks again as soon as it is answered, and prints how many
// answers came in how many seconds.
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { EVENTS = 1024, LARGEST = 64 * 1024 };

struct client {
	int fd;
	int missing; // bytes of the reply
};

static char message[LARGEST], reply[LARGEST];

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static double now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static void ask(struct client *client, int size)
{
	if (send(client->fd, message, size, MSG_NOSIGNAL) != size)
		die("send");
	client->missing = size;
}

int main(int count, char **words)
{
	if (count != 5) {
		fprintf(stderr, "c-client PORT CONNECTIONS SECONDS SIZE\n");
		return 2;
	}
	int connections = atoi(words[2]), size = atoi(words[4]), on = 1;
	struct sockaddr_in address = {
	    .sin_family = AF_INET,
	    .sin_port = htons(atoi(words[1])),
	    .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
	if (connections < 1 || size < 1 || size > LARGEST) {
		fprintf(stderr, "c-client: 1 connection or more, 1 to %d bytes\n", LARGEST);
		return 2;
	}
	struct client *clients = calloc(connections, sizeof *clients);
	struct epoll_event ready[EVENTS];
	int loop = epoll_create1(0);
	if (!clients || loop < 0)
		die("epoll_create1");
	memset(message, 'x', sizeof message);
	for (int i = 0; i < connections; i++) {
		struct epoll_event event = {.events = EPOLLIN, .data.ptr = &clients[i]};
		int fd = clients[i].fd = socket(AF_INET, SOCK_STREAM, 0);
		if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
			die("connect");
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
		if (epoll_ctl(loop, EPOLL_CTL_ADD, fd, &event) < 0)
			die("epoll_ctl");
	}
	long answered = 0;
	double start = now(), end = start + atof(words[3]);
	for (int i = 0; i < connections; i++)
		ask(&clients[i], size);
	while (now() < end) {
		int found = epoll_wait(loop, ready, EVENTS, 100);
		for (int i = 0; i < found; i++) {
			struct client *client = ready[i].data.ptr;
			ssize_t came = recv(client->fd, reply, client->missing, 0);
			if (came <= 0)
				die("recv");
			if ((client->missing -= came) == 0) {
				answered++;
				ask(client, size);
			}
		}
	}
	printf("%ld %.6f\n", answered, now() - start);
	return 0;
}
