// What the C servers share: a listening socket, a blocking conversation, a way to give up.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void die(const char *what)
{
	perror(what);
	exit(1);
}

// Returns a socket that listens on 127.0.0.1 and the port that was typed.
static int listening(int count, char **words, int flags)
{
	int fd = socket(AF_INET, SOCK_STREAM | flags, 0), on = 1;
	struct sockaddr_in address = {
	    .sin_family = AF_INET,
	    .sin_port = htons(count > 1 ? atoi(words[1]) : 9999),
	    .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
	if (fd < 0)
		die("socket");
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on); // accepted sockets inherit it
	if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0 || listen(fd, 4096) < 0)
		die("listen");
	return fd;
}

// Echoes until the client's end, in whatever thread or process calls it.
static inline void echo(int fd)
{
	char buffer[64 * 1024];
	ssize_t size;
	while ((size = recv(fd, buffer, sizeof buffer, 0)) > 0) {
		ssize_t sent = 0, more;
		while (sent < size) {
			if ((more = send(fd, buffer + sent, size - sent, MSG_NOSIGNAL)) < 0)
				return;
			sent += more;
		}
	}
}
