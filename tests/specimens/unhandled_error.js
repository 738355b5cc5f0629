// A socket's "error" event that nobody listens to ends the process.
//
// Fails: C3 C4 C5
"use strict";
const net = require("net");

const server = net.createServer((socket) => socket.pipe(socket));
server.listen({ host: "127.0.0.1", port: Number(process.argv[2]), backlog: 1024 });
