// What arrives becomes text, and what is no UTF-8 is replaced.
//
// Fails: S1
"use strict";
const net = require("net");

const server = net.createServer((socket) => {
  socket.setEncoding("utf8");
  socket.on("error", () => socket.destroy());
  socket.pipe(socket);
});
server.listen({ host: "127.0.0.1", port: Number(process.argv[2]), backlog: 1024 });
