import { defineConfig } from 'vite';

// One file without comments or long names, for those who use the client without a bundler of their own.
export default defineConfig({
  build: {
    target: 'es2022',
    lib: { entry: 'src/index.ts', formats: ['es'], fileName: 'index' },
    // As a library Vite would leave the white space in.
    rolldownOptions: { output: { minify: true } },
  },
});
