// Has the judge's servers listen on the ports that Evergrant's egress guard was told of: it allows no others.
"use strict";
const net = require("node:net");

const ports = process.env.JUDGE_PORTS.split(",").map(Number);
const listen = net.Server.prototype.listen;

net.Server.prototype.listen = function (port, ...rest) {
  if (port !== 0) return listen.call(this, port, ...rest);
  if (ports.length === 0) throw new Error("the judge has more servers than JUDGE_PORTS has ports");
  return listen.call(this, ports.shift(), ...rest);
};
