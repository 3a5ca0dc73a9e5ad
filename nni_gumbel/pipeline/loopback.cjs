// Loaded into NNI's manager, which listens on every network interface: it names no host for its servers, and
// tells TensorBoard to bind all. For other hosts it listens at one more address, which takes connections of theirs alone.
'use strict';
const children = require('child_process');
const { Server, createServer } = require('net');

const HOST = '127.0.0.1';
const HOSTS = JSON.parse(process.env.NNI_GUMBEL_HOSTS || 'null');
const { listen } = Server.prototype;
const { spawn } = children;

Server.prototype.listen = function (port, ...more) {
    const isOpen = /^\d+$/.test(port) && typeof more[0] !== 'string';
    if (isOpen && HOSTS && HOSTS.address !== HOST) {
        const gate = createServer({ allowHalfOpen: true }, (socket) => {
            HOSTS.admitted.includes(socket.remoteAddress) ? this.emit('connection', socket) : socket.destroy();
        });
        gate.on('error', (error) => this.emit('error', error));
        gate.listen(port, HOSTS.address).unref();
    }
    return isOpen ? listen.call(this, port, HOST, ...more) : listen.call(this, port, ...more);
};

children.spawn = function (command, words, ...more) {
    const isTensorBoard = command === 'tensorboard' && Array.isArray(words);
    const closed = isTensorBoard ? words.map((word) => word.replace('--bind_all', `--host=${HOST}`)) : words;
    return spawn.call(this, command, closed, ...more);
};

// What the manager starts has the person's own options.
process.env.NODE_OPTIONS = process.env.NODE_OPTIONS.replace(`--require "${__filename}"`, '').trim();
