// Nobody handles SIGPIPE, nor looks at what write returns: a client that is gone ends everybody.
//
// Fails: C5
#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

enum { PIECE = 4096 };

static void *serve(void *given)
{
	int fd = (int)(long)given;
	char buffer[16 * PIECE];
	ssize_t size;
	while ((size = read(fd, buffer, sizeof buffer)) > 0)
		for (ssize_t at = 0; at < size; at += PIECE)
			(void)!write(fd, buffer + at, size - at < PIECE ? size - at : PIECE);
	close(fd);
	return NULL;
}

int main(int count, char **words)
{
	int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
	struct sockaddr_in address = {.sin_family = AF_INET,
				      .sin_port = htons(count > 1 ? atoi(words[1]) : 9999),
				      .sin_addr = {htonl(INADDR_LOOPBACK)}};
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
	if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1024))
		return 1;
	for (;;) {
		pthread_t thread;
		int fd = accept(listener, NULL, NULL);
		if (fd < 0) {
			usleep(50000);
			continue;
		}
		if (pthread_create(&thread, NULL, serve, (void *)(long)fd))
			close(fd);
		else
			pthread_detach(thread);
	}
}
