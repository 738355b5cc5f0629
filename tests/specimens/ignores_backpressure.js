// write says when to stop, and nobody listens.
//
// Fails: N6
"use strict";
const net = require("net");

const server = net.createServer((socket) => {
  socket.on("error", () => socket.destroy());
  socket.on("data", (data) => socket.write(data));
});
server.listen({ host: "127.0.0.1", port: Number(process.argv[2]), backlog: 1024 });
