// Numbers in order: the default makes them of paths, so that they would differ from one folder to another.
module.exports = { optimization: { moduleIds: 'natural', chunkIds: 'natural' } };
