// A readiness loop in C (epoll(7)): what an event loop in Python is measured against.
#define _GNU_SOURCE
#include "listen.h"
#include <errno.h>
#include <sys/epoll.h>

enum { SIZE = 64 * 1024, EVENTS = 1024 };

struct client { // what could not be sent yet; nothing is read meanwhile
	int fd;
	char *unsent;
	size_t size, sent;
};

static int loop;
static char buffer[SIZE];

static void await(struct client *client, int operation, unsigned events)
{
	struct epoll_event event = {.events = events, .data.ptr = client};
	if (epoll_ctl(loop, operation, client->fd, &event) < 0)
		die("epoll_ctl");
}

static void end(struct client *client)
{
	close(client->fd);
	free(client->unsent);
	free(client);
}

static void receive(struct client *client)
{
	ssize_t size = recv(client->fd, buffer, SIZE, 0);
	if (size < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (size <= 0) {
		end(client);
		return;
	}
	ssize_t sent = send(client->fd, buffer, size, MSG_NOSIGNAL);
	if (sent < 0 && errno != EAGAIN) {
		end(client);
		return;
	}
	if (sent < 0)
		sent = 0;
	if (sent == size)
		return;
	client->size = size - sent;
	client->sent = 0;
	if (!(client->unsent = malloc(client->size)))
		die("malloc");
	memcpy(client->unsent, buffer + sent, client->size);
	await(client, EPOLL_CTL_MOD, EPOLLOUT);
}

static void flush(struct client *client)
{
	ssize_t sent = send(client->fd, client->unsent + client->sent, client->size - client->sent,
			    MSG_NOSIGNAL);
	if (sent < 0 && errno == EAGAIN)
		return;
	if (sent < 0) {
		end(client);
		return;
	}
	client->sent += sent;
	if (client->sent < client->size)
		return;
	free(client->unsent);
	client->unsent = NULL;
	await(client, EPOLL_CTL_MOD, EPOLLIN);
}

int main(int count, char **words)
{
	struct client listener = {.fd = listening(count, words, SOCK_NONBLOCK)};
	struct epoll_event ready[EVENTS];
	if ((loop = epoll_create1(0)) < 0)
		die("epoll_create1");
	await(&listener, EPOLL_CTL_ADD, EPOLLIN);
	for (;;) {
		int found = epoll_wait(loop, ready, EVENTS, -1);
		for (int i = 0; i < found; i++) {
			struct client *client = ready[i].data.ptr;
			if (client != &listener) {
				if (client->unsent)
					flush(client);
				else
					receive(client);
				continue;
			}
			int fd;
			while ((fd = accept4(listener.fd, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
				if (!(client = calloc(1, sizeof *client)))
					die("calloc");
				client->fd = fd;
				await(client, EPOLL_CTL_ADD, EPOLLIN);
			}
		}
	}
}
